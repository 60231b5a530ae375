//! The maps, private, behind typed functions.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST, xdp_action},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, xdp::DevMapHash},
};
use lb_common::{
    abi::MAX_BACKEND_ID,
    backend::{Backend, BackendStats},
    flow::{FlowKey, Pin, PinStats, SWEEP_BATCH, SWEEP_CHANGED, SWEEP_DELETED, SWEEP_GONE, SweepItem},
    hash::halves,
    lookup::{self, Entry, Found, Key, Line, SPARE_ENTRIES},
    outcome::Outcome,
    record::Record,
    service::Service,
    slot::Slot,
};

// The sizes here are only defaults: the loader sets them from `limits`. Arrays that can be mapped begin on a page, so that
// an entry of 64 bytes is one cache line; others begin anywhere.
#[map]
static LINES4: Array<Line> = Array::with_max_entries((1 << 10) + 1, BPF_F_MMAPABLE);
#[map]
static LINES6: Array<Line> = Array::with_max_entries((1 << 10) + 1, BPF_F_MMAPABLE);
#[map]
static SERVICES4: Array<Entry> = Array::with_max_entries(1024 + SPARE_ENTRIES + 1, BPF_F_MMAPABLE);
#[map]
static SERVICES6: Array<Entry> = Array::with_max_entries(1024 + SPARE_ENTRIES + 1, BPF_F_MMAPABLE);
/// Of both families' lines, see [`lookup::line_bits`]. The loader sets it, and to the verifier it is a constant.
#[unsafe(no_mangle)]
static LINE_BITS: u32 = 10;
/// Slot words of all rings. The controller maps it into its memory: one store changes a slot. Two words an element,
/// since the kernel rounds elements up to eight bytes.
#[map]
static RING: Array<[u32; 2]> = Array::with_max_entries(65538 / 2, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(MAX_BACKEND_ID as u32 + 1, BPF_F_MMAPABLE);
#[map]
static BACKEND_STATS: PerCpuArray<BackendStats> = PerCpuArray::with_max_entries(MAX_BACKEND_ID as u32 + 1, 0);
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::CAPACITY, 0);
#[map]
static DEVICES: DevMapHash = DevMapHash::with_max_entries(64, 0);
/// A plain hash, allocated in advance: when it is full it refuses, so that no flood can push out a live pin.
#[map]
static FLOWS: HashMap<FlowKey, Pin> = HashMap::with_max_entries(1_048_576, 0);
#[map]
static PIN_STATS: PerCpuArray<PinStats> = PerCpuArray::with_max_entries(1, 0);
#[map]
static UDP_ROOM: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SWEEP: Array<SweepItem> = Array::with_max_entries(SWEEP_BATCH, BPF_F_MMAPABLE);
#[map]
static RECORDS: Array<Record> = Array::with_max_entries(MAX_BACKEND_ID as u32 + 1, 0);

/// The service of (address, port, protocol), else of (address, any port, protocol).
#[inline(always)]
pub fn service4(address: [u8; 4], port: [u8; 2], protocol: u8) -> Option<&'static Service> {
    if let Some(entry) = find(&LINES4, &SERVICES4, Key::ipv4(address, port, protocol)) {
        return Some(&entry.service);
    }
    if !has_any_port(&LINES4) {
        return None;
    }
    find(&LINES4, &SERVICES4, Key::ipv4(address, [0, 0], protocol)).map(|entry| &entry.service)
}

/// As [`service4`].
#[inline(always)]
pub fn service6(address: [u8; 16], port: [u8; 2], protocol: u8) -> Option<&'static Service> {
    if let Some(entry) = find6(address, port, protocol) {
        return Some(&entry.service);
    }
    if !has_any_port(&LINES6) {
        return None;
    }
    find6(address, [0, 0], protocol).map(|entry| &entry.service)
}

/// Whether packets to this address are ours to judge.
#[inline(always)]
pub fn is_service_address4(address: [u8; 4]) -> bool {
    find(&LINES4, &SERVICES4, Key::ipv4(address, [0, 0], 0)).is_some()
}

/// As [`is_service_address4`].
#[inline(always)]
pub fn is_service_address6(address: [u8; 16]) -> bool {
    find6(address, [0, 0], 0).is_some()
}

#[inline(always)]
fn find6(address: [u8; 16], port: [u8; 2], protocol: u8) -> Option<&'static Entry> {
    let address = halves(address);
    let entry = find(&LINES6, &SERVICES6, Key::ipv6(address, port, protocol))?;
    // The key holds only a hash of the address.
    (halves(entry.address) == address).then_some(entry)
}

#[inline(always)]
fn find(lines: &'static Array<Line>, entries: &'static Array<Entry>, key: Key) -> Option<&'static Entry> {
    let [first, second] = key.lines(line_bits());
    let index = match lookup::find(lines.get(first)?, key) {
        Found::Entry(index) => index,
        Found::Nothing => return None,
        Found::Further => match lookup::find(lines.get(second)?, key) {
            Found::Entry(index) => index,
            Found::Nothing | Found::Further => return None,
        },
    };
    entries.get(index)
}

/// Whether some service of the family has any port.
#[inline(always)]
fn has_any_port(lines: &'static Array<Line>) -> bool {
    lines.get(1 << line_bits()).is_some_and(|line| line.0[0] != 0)
}

#[inline(always)]
fn line_bits() -> u32 {
    // SAFETY: a static of this program; volatile, since the compiler does not know that the loader changes it.
    unsafe { (&raw const LINE_BITS).read_volatile() }
}

/// The slot at `at` in the array of all rings.
#[inline(always)]
pub fn slot(at: u32) -> Slot {
    RING.get(at / 2).map_or(Slot::EMPTY, |pair| Slot::from_word(pair[(at % 2) as usize]))
}

/// The backend with this id, if there is one.
#[inline(always)]
pub fn backend(id: u16) -> Option<&'static Backend> {
    BACKENDS.get(u32::from(id))
}

/// Counts a packet sent to a backend.
#[inline(always)]
pub fn count_sent(id: u16, bytes: u16, opens: bool) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(u32::from(id)) {
        // SAFETY: this CPU's own entry, and XDP programs are not interrupted by others on the same CPU.
        let stats = unsafe { &mut *stats };
        stats.packets += 1;
        stats.bytes += u64::from(bytes);
        stats.connections += u64::from(opens);
    }
}

/// The flow's pin.
#[inline(always)]
pub fn pin(key: &FlowKey) -> Option<&'static mut Pin> {
    // SAFETY: the value lives in the map; its fields are words that CPUs write each whole.
    FLOWS.get_ptr_mut(key).and_then(|pin| unsafe { pin.as_mut() })
}

/// What became of a new pin.
pub enum Inserted {
    /// It is there.
    New,
    /// Another CPU has just made one for this flow.
    Exists,
    /// The table is full.
    Refused,
}

/// Makes a new pin.
#[inline(always)]
pub fn insert_pin(key: &FlowKey, pin: &Pin) -> Inserted {
    const EEXIST: i64 = -17;
    match FLOWS.insert(key, pin, u64::from(BPF_NOEXIST)) {
        Ok(()) => Inserted::New,
        Err(error) if i64::from(error) == EEXIST => Inserted::Exists,
        Err(_) => Inserted::Refused,
    }
}

/// Removes a pin.
#[inline(always)]
pub fn delete_pin(key: &FlowKey) {
    // It may be gone already.
    let _ = FLOWS.remove(key);
}

/// This CPU's count of pins.
#[inline(always)]
pub fn pin_stats() -> Option<&'static mut PinStats> {
    // SAFETY: this CPU's own entry, and XDP programs are not interrupted by others on the same CPU.
    PIN_STATS.get_ptr_mut(0).and_then(|stats| unsafe { stats.as_mut() })
}

/// Counts a new pin that was refused.
#[inline(always)]
pub fn count_refused(is_datagram: bool) {
    if let Some(stats) = pin_stats() {
        *if is_datagram { &mut stats.refused_udp } else { &mut stats.refused } += 1;
    }
}

/// Takes one of the UDP pins that this CPU may still make before the next sweep.
#[inline(always)]
pub fn take_udp_room() -> bool {
    let Some(room) = UDP_ROOM.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry; a sweep that writes it meanwhile is off by one at most.
    unsafe {
        if *room == 0 {
            return false;
        }
        *room -= 1;
    }
    true
}

/// Counts a packet that was not sent.
#[inline(always)]
pub fn count(outcome: Outcome) {
    if let Some(packets) = OUTCOMES.get_ptr_mut(outcome as u32) {
        // SAFETY: as in `count_sent`.
        unsafe { *packets += 1 };
    }
}

/// Queues the packet for another interface.
#[inline(always)]
pub fn redirect(ifindex: u32) -> Result<(), Outcome> {
    match DEVICES.redirect(ifindex, u64::from(xdp_action::XDP_DROP)) {
        Ok(_) => Ok(()),
        Err(_) => Err(Outcome::DropNoDevice),
    }
}

/// Deletes the pin of item number `index` of `SWEEP` if it is as the item says, and notes there what it did.
#[inline(always)]
pub fn sweep(index: u32) {
    let Some(item) = SWEEP.get_ptr_mut(index) else { return };
    // SAFETY: the sweeper writes its items before it runs the program, and reads them afterwards.
    let item = unsafe { &mut *item };
    let key = &item.key;
    item.done = match FLOWS.get_ptr(key) {
        None => SWEEP_GONE,
        // SAFETY: a pin's memory is never freed. If it has another flow's pin by now that looks the same, the deletion
        // goes by the key and finds none.
        Some(pin) if unsafe { *pin } != item.pin => SWEEP_CHANGED,
        Some(_) if FLOWS.remove(key).is_ok() => SWEEP_DELETED,
        Some(_) => SWEEP_CHANGED,
    };
}
