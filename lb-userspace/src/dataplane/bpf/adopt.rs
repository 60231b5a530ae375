//! Maps that an earlier controller left: found by their pins or through the program that uses them, and checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
};

use aya::{
    maps::{MapError, MapFd, MapInfo},
    programs::{ProgramInfo, loaded_programs},
};
use aya_obj::generated::BPF_F_RDONLY_PROG;
use lb_common::abi::{self, maps};

use super::{
    error::{LoadError, PinError, errno, load_error},
    pins::PinDir,
    shape::{Mismatch, Shape, Size, compare_all, sizes},
};
use crate::config::spec::Limits;

/// The shapes that this object wants its maps to have.
fn wanted(object: &[u8], limits: &Limits) -> Result<BTreeMap<&'static str, Shape>, LoadError> {
    let object = aya_obj::Object::parse(object).map_err(|e| load_error("read the embedded object", &e))?;
    let sizes = sizes(limits);
    let shape = |name: &'static str| {
        let map = object.maps.get(name).expect("the embedded object has the map: lb-ebpf defines it");
        let entries = sizes.iter().find(|s| s.map == name).map_or(map.max_entries(), Size::entries);
        let shape = Shape {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            entries,
            flags: own_flags(map.map_flags()),
        };
        (name, shape)
    };
    Ok(maps::ALL.into_iter().map(shape).collect())
}

/// Finds the maps, checks them all, and only then changes something: maps that lost their pins get them again. Answers
/// whether there were any.
pub(super) fn adopt(object: &[u8], limits: &Limits, pins: &PinDir) -> Result<bool, LoadError> {
    let mut found = BTreeMap::new();
    for name in maps::ALL {
        match MapInfo::from_pin(pins.maps().join(name)) {
            Ok(info) => drop(found.insert(name, info)),
            Err(e) if errno(&e) == Some(libc::ENOENT) => {}
            Err(e) => return Err(load_error("open the pinned maps", &e)),
        }
    }
    let mut lost = Vec::new();
    if found.len() < maps::ALL.len() {
        for info in maps_in_use(pins)? {
            if let Some(name) = maps::ALL.into_iter().find(|name| info.name_as_str() == Some(name))
                && !found.contains_key(name)
            {
                lost.push((name, info));
            }
        }
    }
    let all = || found.iter().map(|(name, info)| (*name, info)).chain(lost.iter().map(|(n, i)| (*n, i)));
    check(all(), &wanted(object, limits)?, limits, pins)?;
    let adopted = all().next().is_some();
    pins.make()?;
    for (name, info) in &lost {
        tracing::warn!("the map {name} had lost its pin; it is adopted through the program that uses it");
        let fd = info.fd().map_err(|e| load_error("open the maps", &e))?;
        pins.put(fd.as_fd(), &pins.maps().join(name))?;
    }
    Ok(adopted)
}

fn check<'a>(
    found: impl Iterator<Item = (&'static str, &'a MapInfo)>,
    wanted: &BTreeMap<&'static str, Shape>,
    limits: &Limits,
    pins: &PinDir,
) -> Result<(), PinError> {
    let found = found.map(|(name, info)| (name, shape_of(info))).collect();
    let mut differ = compare_all(&found, wanted, &sizes(limits));
    if differ.is_empty() {
        return Ok(());
    }
    let dir = pins.path().to_owned();
    if differ.iter().all(|m| matches!(m, Mismatch::Limit { .. })) {
        return Err(PinError::Limits { dir, differ });
    }
    differ.retain(|m| matches!(m, Mismatch::Other { .. }));
    Err(PinError::OtherShape { dir, version: pins.version(), differ })
}

/// The maps of the programs that run through the pinned links, and of the pinned program.
fn maps_in_use(pins: &PinDir) -> Result<Vec<MapInfo>, LoadError> {
    let mut programs = BTreeSet::new();
    for (_, link) in pins.links()? {
        programs.extend(link.state().ok().map(|state| state.program));
    }
    let pinned = ProgramInfo::from_pin(pins.program()).ok();
    programs.extend(pinned.map(|info| info.id()));
    let mut maps = Vec::new();
    for program in loaded_programs().filter_map(Result::ok) {
        if programs.contains(&program.id()) && program.name_as_str() == Some(abi::PROGRAM) {
            let ids = program.map_ids().map_err(|e| load_error("list the program's maps", &e))?;
            maps.extend(ids.into_iter().flatten().filter_map(|id| MapInfo::from_id(id).ok()));
        }
    }
    Ok(maps)
}

fn shape_of(info: &MapInfo) -> Shape {
    Shape {
        // A type that aya does not know is none of ours.
        kind: info.map_type().map_or(u32::MAX, |kind| kind as u32),
        key_size: info.key_size(),
        value_size: info.value_size(),
        entries: info.max_entries(),
        flags: own_flags(info.map_flags()),
    }
}

/// Without the flag that the kernel gives every device map.
fn own_flags(flags: u32) -> u32 {
    flags & !BPF_F_RDONLY_PROG
}

/// A map that we hold, whatever becomes of its pin.
pub(super) struct OwnMap {
    pub name: &'static str,
    pub id: u32,
    pub fd: MapFd,
}

/// All maps, by their pins.
pub(super) fn pinned_maps(pins: &PinDir) -> Result<Vec<OwnMap>, LoadError> {
    let open = |name: &'static str| {
        let info = MapInfo::from_pin(pins.maps().join(name))?;
        Ok(OwnMap { name, id: info.id(), fd: info.fd()? })
    };
    let all = maps::ALL.into_iter().map(open).collect::<Result<_, MapError>>();
    all.map_err(|e| load_error("open the pinned maps", &e))
}
