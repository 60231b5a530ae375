//! The real program with maps that the real engine fills; what no configuration can bring about (slots that move, pins)
//! is written into the maps afterwards.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    backend::BackendStats,
    flow::{FlowKey, Pin},
    outcome::Outcome,
    parse::TCP,
    service::Service,
    slot::Slot,
};
use lb_userspace::{
    config,
    controller::engine::Engine,
    dataplane::{
        Dataplane as _,
        bpf::{self, BpfProgram},
    },
    health::Health,
    net::{NextHop, NextHopState},
    plan::tables::{Op, Ring, ServiceKey, Tables},
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    shared::Shared,
    stream::{Family, PORT, Stream, service_address},
};

/// Index of `lo`, where packets of BPF_PROG_TEST_RUN come in.
const LO: u32 = 1;

/// How packets reach their backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// New MACs.
    L2,
    /// IP in IP.
    Ipip,
}

impl Forward {
    /// As it is in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Ipip => "ipip",
        }
    }
}

/// What a world is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Of all addresses.
    pub family: Family,
    /// Of all services.
    pub forward: Forward,
    /// How many there are.
    pub services: u32,
    /// Backends of each.
    pub backends: u32,
    /// Slots of each.
    pub ring_size: u32,
    /// `tracking: always`.
    pub always: bool,
    /// Every so manyth slot is moving; 0: none is.
    pub moving_every: u32,
    /// The first so many flows have pins if they fall on slots that move, or are always tracked.
    pub pins: u32,
    /// Size of the flow table.
    pub flow_limit: u32,
}

impl Shape {
    /// One settled service of 100 backends.
    pub fn new(family: Family, forward: Forward) -> Self {
        Self {
            family,
            forward,
            services: 1,
            backends: 100,
            ring_size: 65_537,
            always: false,
            moving_every: 0,
            pins: 0,
            flow_limit: 65_536,
        }
    }
}

/// See the module.
pub struct World {
    /// What it was made from.
    pub shape: Shape,
    /// The program.
    pub program: BpfProgram,
    engine: Engine,
    maps: Shared,
    flows: HashMap<MapData, FlowKey, Pin>,
    /// As the engine has made them: all slots settled.
    rings: BTreeMap<u32, Ring>,
    /// Of the backends, in order.
    ids: Vec<u16>,
}

/// Counters, to be compared with later ones.
pub struct Counters {
    /// By outcome.
    pub outcomes: [u64; Outcome::ALL.len()],
    /// By backend.
    pub stats: BTreeMap<u16, BackendStats>,
    /// Pins refused.
    pub refused: u64,
}

impl World {
    /// Loads the program, and fills its maps.
    pub fn new(shape: Shape) -> Result<Self> {
        let spec = Arc::new(config::parse(&yaml(&shape), Path::new("bench.yaml"))?.spec);
        let (maps, mut program) = bpf::load(&spec.limits)?;
        let maps = Shared(Arc::new(Mutex::new(maps)));
        let mut engine = Engine::new(spec, Box::new(maps.clone()));
        engine.set_devices(BTreeMap::from([(LO, "lo".to_owned())]));
        let backends: Vec<_> =
            engine.known().probed().into_iter().map(|(_, key, address)| (key, address)).collect();
        let next_hops = backends.iter().map(|(_, a)| (*a, NextHopState::Resolved(next_hop(*a))));
        engine.set_next_hops(next_hops.collect());
        for (backend, _) in backends {
            engine.set_health(backend, Health::Up);
        }
        engine.reconcile(Instant::now())?;
        let parts = program.take_sweep_parts().context("the sweeper's parts are there once")?;
        let flows = MapData::from_fd(parts.flows().try_clone_to_owned()?)?;
        let flows = HashMap::try_from(Map::HashMap(flows))?;
        let rings = engine.applied().rings.clone();
        let ids = engine.applied().backends.keys().copied().collect();
        let mut world = Self { shape, program, engine, maps, flows, rings, ids };
        world.move_slots()?;
        world.pin_flows()?;
        Ok(world)
    }

    fn tables(&self) -> &Tables {
        self.engine.applied()
    }

    fn move_slots(&self) -> Result<()> {
        for (base, ring) in &self.rings {
            let slots = (0..).zip(ring.iter()).map(|(index, slot)| {
                let home = slot.current();
                if self.is_moving(index) { Slot::moving(self.after(home, 1), home) } else { *slot }
            });
            self.maps.maps().apply(&Op::WriteRing(*base, slots.collect()))?;
        }
        Ok(())
    }

    fn is_moving(&self, slot: u32) -> bool {
        self.shape.moving_every > 0 && slot.is_multiple_of(self.shape.moving_every)
    }

    fn is_looked_up(&self, slot: u32) -> bool {
        self.shape.always || self.is_moving(slot)
    }

    /// Pins point to a backend that the slot does not name: that packets get there shows that they were found.
    fn pin_flows(&mut self) -> Result<()> {
        let stream =
            Stream { services: self.shape.services, ..Stream::new(self.shape.family, self.shape.pins) };
        let now = clock_gettime(ClockId::MonotonicCoarse);
        let last_seen_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        for flow in 0..stream.flows {
            let (service, slot) = self.place(&stream, flow)?;
            if self.is_looked_up(slot) {
                let backend = self.after(self.home(&service, slot), 2);
                let pin = Pin { last_seen_ns, slot: service.ring_base + slot, backend, closing: 0 };
                self.flows.insert(stream.key(flow), pin, 0)?;
            }
        }
        Ok(())
    }

    /// Service and slot of a flow.
    fn place(&self, stream: &Stream, flow: u32) -> Result<(Service, u32)> {
        let address = service_address(stream.family, stream.service(flow));
        let service = self.tables().services.get(&ServiceKey::new(address, PORT, TCP));
        let service = *service.with_context(|| format!("{address} is no service"))?;
        Ok((service, stream.slot(flow, &service)))
    }

    /// The backend that has a slot by the engine's will.
    fn home(&self, service: &Service, slot: u32) -> u16 {
        self.rings[&service.ring_base][slot as usize].current()
    }

    /// The backend `steps` after this one, around in a circle.
    fn after(&self, id: u16, steps: usize) -> u16 {
        let at = self.ids.partition_point(|other| *other < id);
        self.ids[(at + steps) % self.ids.len()]
    }

    /// The backend that a packet of the flow must get to; `None` if that depends on limits of rates.
    pub fn target(&self, stream: &Stream, flow: u32) -> Result<Option<u16>> {
        let (service, slot) = self.place(stream, flow)?;
        let home = self.home(&service, slot);
        Ok(match (self.is_looked_up(slot), flow < self.shape.pins) {
            (false, _) => Some(home),
            (true, true) => Some(self.after(home, 2)),
            (true, false) => None,
        })
    }

    /// The backend's address, and the MAC of its next hop.
    pub fn backend(&self, id: u16) -> Option<([u8; 16], [u8; 6])> {
        self.tables().backends.get(&id).map(|backend| (backend.address, backend.next_hop))
    }

    /// All counters.
    pub fn counters(&self) -> Result<Counters> {
        let maps = self.maps.maps();
        let stats = self.ids.iter().copied().zip(maps.backend_stats(&self.ids)?).collect();
        Ok(Counters { outcomes: maps.outcomes()?, stats, refused: maps.refused_pins()?.tcp })
    }

    /// Removes the pins that the program has made in a world without any.
    pub fn clear_flows(&mut self) -> Result<()> {
        ensure!(self.shape.pins == 0, "the pins of this world are to stay");
        let keys: Vec<_> = self.flows.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.flows.remove(&key)?;
        }
        Ok(())
    }
}

/// The file.
fn yaml(shape: &Shape) -> String {
    let Shape { family, forward, services, backends, ring_size, always, flow_limit, .. } = *shape;
    let (slots, ids) = (services * (ring_size + 1), services * backends + 1);
    let mut yaml = format!(
        "interfaces: [lo]\n\
         limits: {{services: {}, backends: {ids}, slots: {slots}, flows: {flow_limit}}}\n\
         defaults: {{forward: {}, tracking: {}, ring_size: {ring_size}, health: {{type: none}}}}\n\
         services:\n",
        services * 2 + 16,
        forward.name(),
        if always { "always" } else { "auto" },
    );
    for service in 0..services {
        let address = match service_address(family, service) {
            IpAddr::V4(a) => format!("{a}:{PORT}/tcp"),
            IpAddr::V6(a) => format!("[{a}]:{PORT}/tcp"),
        };
        yaml += &format!("- name: s{service}\n  listen: [\"{address}\"]\n  backends:\n");
        for backend in 0..backends {
            let address = backend_address(family, service * backends + backend);
            yaml += &format!("  - {{address: \"{address}\"}}\n");
        }
    }
    yaml
}

/// Backends are 172.16/12 or fd00::/96.
fn backend_address(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(0xac10_0001 + number).into(),
        Family::V6 => Ipv6Addr::from(0xfd00 << 112 | u128::from(1 + number)).into(),
    }
}

fn next_hop(address: IpAddr) -> NextHop {
    let (last, source): ([u8; 4], IpAddr) = match address {
        IpAddr::V4(a) => (a.octets(), Ipv4Addr::new(10, 255, 0, 2).into()),
        IpAddr::V6(a) => {
            let [.., a, b, c, d] = a.octets();
            ([a, b, c, d], Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2).into())
        }
    };
    let [a, b, c, d] = last;
    NextHop {
        ifindex: LO,
        interface: "lo".into(),
        mac: [2, 0xaa, a, b, c, d],
        source_mac: [2, 0, 0, 0, 0, 1],
        source,
        mtu: 1500,
        gateway: None,
    }
}
