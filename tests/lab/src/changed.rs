//! Programs made from `xlb` by changing the BPF objects embedded in it: one to upgrade to, and those with a rule left out
//! that tests compare it with. The product knows nothing of them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::process::above_this_binary;

const EARLY: &str = "the BPF object ends early";
/// Of an ELF header and of a section's header, both.
const HEADER: usize = 64;

/// Changes one instruction in each section of code of the BPF objects embedded in `program`, where it can, into
/// another that means the same: `if a > N` is `if a >= N + 1`. The kernel sees another program, with another tag.
pub fn with_other_bpf(program: &mut [u8]) -> Result<()> {
    let mut changed = 0;
    for object in objects(program)? {
        for section in sections(&program[object..])?.iter().filter(|section| section.is_code) {
            let code = program.get_mut(object + section.start..object + section.start + section.length);
            changed += usize::from(say_otherwise(code.context(EARLY)?));
        }
    }
    ensure!(changed > 0, "there is no comparison to say otherwise in any BPF object");
    Ok(())
}

/// Makes the flow table an LRU map, which pushes old pins out when it is full instead of refusing new ones.
pub fn with_lru_flow_table(program: &mut [u8]) -> Result<()> {
    const HASH: [u8; 4] = 1u32.to_le_bytes();
    const LRU_HASH: [u8; 4] = 9u32.to_le_bytes();
    let mut changed = 0;
    for object in objects(program)? {
        if let Some(at) = symbol(&program[object..], "FLOWS")? {
            // A map's definition starts with its type.
            let kind = program.get_mut(object + at..object + at + HASH.len()).context(EARLY)?;
            ensure!(*kind == HASH, "the flow table's type is {kind:?}");
            kind.copy_from_slice(&LRU_HASH);
            changed += 1;
        }
    }
    ensure!(changed == 1, "{changed} objects have a flow table");
    Ok(())
}

/// Puts the balancer that was built with this feature of lb-ebpf (`cargo xtask build --controls`) in the place of the
/// embedded one.
pub fn with_control(program: &mut [u8], feature: &str) -> Result<()> {
    let remedy = "run `cargo xtask build --controls`";
    let dir = above_this_binary("bpf").with_context(|| remedy)?;
    let read = |path: &Path| {
        let time = path.metadata().and_then(|data| data.modified());
        let both = time.and_then(|time| Ok((time, fs::read(path)?)));
        both.with_context(|| format!("read {}: {remedy}", path.display()))
    };
    let (built, embedded) = read(&dir.join("balancer"))?;
    let (control_built, control) = read(&dir.join(format!("balancer-{feature}")))?;
    ensure!(control_built >= built, "balancer-{feature} is older than the balancer: {remedy}");
    let control = without_debug_sections(&control)?;
    ensure!(control.len() <= embedded.len(), "balancer-{feature} is longer than the balancer");
    let at = objects(program)?.into_iter().find(|at| program[*at..].starts_with(&embedded));
    let at = at.with_context(|| format!("xlb has another balancer in it than target/bpf: {remedy}"))?;
    let place = &mut program[at..at + embedded.len()];
    // Nothing refers to what is behind its end.
    place.fill(0);
    place[..control.len()].copy_from_slice(&control);
    Ok(())
}

/// `BPF_LD | BPF_IMM | BPF_DW`, the only instruction of two words.
const LOAD_WIDE: u8 = 0x18;
/// `if a > N` and `if a < N` without sign, of 64 and 32 bits, and what to add to N when `=` joins them.
const COMPARISONS: [(u8, i32); 4] = [(0x25, 1), (0x26, 1), (0xa5, -1), (0xa6, -1)];
/// From an opcode of these to that with `=`.
const OR_EQUAL: u8 = 0x10;

/// Says the first comparison with a number otherwise; `false` if there is none.
fn say_otherwise(code: &mut [u8]) -> bool {
    let mut second_word = false;
    for instruction in code.chunks_exact_mut(8) {
        let was_second_word = second_word;
        second_word = !was_second_word && instruction[0] == LOAD_WIDE;
        if was_second_word {
            continue;
        }
        let number = i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        let comparison = COMPARISONS.iter().find(|(opcode, _)| *opcode == instruction[0]);
        // Numbers in this range do not wrap, and mean the same with 32 and 64 bits.
        if let Some((_, more)) = comparison.filter(|_| (1..i32::MAX).contains(&number)) {
            instruction[0] += OR_EQUAL;
            instruction[4..].copy_from_slice(&(number + more).to_le_bytes());
            return true;
        }
    }
    false
}

/// Whether a little-endian 64-bit ELF object for machine 247, BPF, starts here.
fn is_bpf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes[18..20] == [247, 0]
}

/// Where BPF objects start in a program.
fn objects(program: &[u8]) -> Result<Vec<usize>> {
    let starts = 0..program.len().saturating_sub(HEADER);
    let found: Vec<_> = starts.filter(|at| is_bpf(&program[*at..])).collect();
    ensure!(!found.is_empty(), "there is no BPF object in this program");
    Ok(found)
}

/// Of an ELF object.
struct Section {
    /// Where its header is.
    header: usize,
    /// Where its name is in the table of names.
    name: usize,
    kind: usize,
    is_code: bool,
    start: usize,
    length: usize,
    /// The number of the section that goes with it: of a symbol table its names.
    link: usize,
}

const SHT_PROGBITS: usize = 1;
const SHT_SYMTAB: usize = 2;
const SHF_EXECINSTR: usize = 4;

fn sections(object: &[u8]) -> Result<Vec<Section>> {
    let (table, entry, count) = (number(object, 40, 8)?, number(object, 58, 2)?, number(object, 60, 2)?);
    let section = |header| {
        let (kind, flags) = (number(object, header + 4, 4)?, number(object, header + 8, 8)?);
        Ok(Section {
            header,
            name: number(object, header, 4)?,
            kind,
            is_code: kind == SHT_PROGBITS && flags & SHF_EXECINSTR != 0,
            start: number(object, header + 24, 8)?,
            length: number(object, header + 32, 8)?,
            link: number(object, header + 40, 4)?,
        })
    };
    (0..count).map(|i| section(table + i * entry)).collect()
}

/// Where the symbol's data is in an object, if it has one of this name.
fn symbol(object: &[u8], name: &str) -> Result<Option<usize>> {
    let sections = sections(object)?;
    let table = sections.iter().find(|section| section.kind == SHT_SYMTAB).context("no symbols")?;
    let names = sections.get(table.link).context(EARLY)?.start;
    for at in (table.start..table.start + table.length).step_by(24) {
        if text(object, names + number(object, at, 4)?)? == name.as_bytes() {
            let section = sections.get(number(object, at + 6, 2)?).context(EARLY)?;
            return Ok(Some(section.start + number(object, at + 8, 8)?));
        }
    }
    Ok(None)
}

/// The same object with empty sections in place of those for debuggers: a fifth of its length.
fn without_debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    let sections = sections(object)?;
    let names = sections.get(number(object, 62, 2)?).context(EARLY)?.start;
    let (mut small, mut headers) = (object.get(..HEADER).context(EARLY)?.to_vec(), Vec::new());
    for section in &sections {
        let name = text(object, names + section.name)?;
        let is_debug = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
        let length = if is_debug { 0 } else { section.length };
        let mut header = object.get(section.header..section.header + HEADER).context(EARLY)?.to_vec();
        header[24..32].copy_from_slice(&small.len().to_le_bytes());
        header[32..40].copy_from_slice(&length.to_le_bytes());
        headers.extend(header);
        small.extend(object.get(section.start..section.start + length).context(EARLY)?);
        // No section asks for more.
        small.resize(small.len().next_multiple_of(8), 0);
    }
    let table = small.len().to_le_bytes();
    small[40..48].copy_from_slice(&table);
    small.extend(headers);
    Ok(small)
}

/// A little-endian number of `length` bytes.
fn number(object: &[u8], at: usize, length: usize) -> Result<usize> {
    let bytes = object.get(at..at + length).context(EARLY)?;
    Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

/// A text up to its zero.
fn text(object: &[u8], at: usize) -> Result<&[u8]> {
    let rest = object.get(at..).context(EARLY)?;
    rest.split(|byte| *byte == 0).next().context(EARLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unsigned_comparison_with_a_number_is_said_otherwise() {
        let wide = [LOAD_WIDE, 1, 0, 0, 0, 0, 0, 0, 0x25, 0, 0, 0, 9, 0, 0, 0];
        let signed = [0x65, 1, 2, 0, 9, 0, 0, 0];
        for (opcode, other, number) in [(0x25, 0x35, 10), (0x26, 0x36, 10), (0xa5, 0xb5, 8), (0xa6, 0xb6, 8)]
        {
            let mut code = [&wide[..], &signed, &[opcode, 1, 2, 0, 9, 0, 0, 0]].concat();
            assert!(say_otherwise(&mut code));
            assert_eq!(code, [&wide[..], &signed, &[other, 1, 2, 0, number, 0, 0, 0]].concat());
        }
        assert!(!say_otherwise(&mut [&wide[..], &signed].concat()));
    }

    #[test]
    fn a_program_without_bpf_is_refused() {
        let mut nothing = vec![0; 4096];
        assert!(with_other_bpf(&mut nothing).unwrap_err().to_string().contains("no BPF object"));
    }
}
