//! What the ring costs and how evenly it spreads: the table of `docs/ring.md`.
//!
//! `cargo run --release -p lb-userspace --example ring_figures`

use lb_userspace::plan::ring::{Identity, Member, build, table_checksum};
use std::{
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

const POOLS: u32 = 200;
const BUILDS: usize = 51;

fn main() {
    for (name, weights) in [("equal weights", &[100][..]), ("weights 100, 200, 300", &[100, 200, 300])] {
        println!("\n{name}; collateral: average (worst) of {POOLS} pools, % of slots\n");
        println!(
            "| backends | slots | least, most share / ideal | add | remove | weight x 2 | weight x 0.5 | build us |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for count in [3, 10, 30, 100, 1000] {
            for size in [4093, 65537] {
                print_row(count, size, weights);
            }
        }
    }
    let members = pool(0, 1000, &[100]);
    let ring = build(&members, 65537);
    println!(
        "\nchecksum of 65537 slots: {} us",
        median(|| black_box(table_checksum(&ring, &members))).as_micros()
    );
}

fn print_row(count: u16, size: u32, weights: &[u32]) {
    let (mut least, mut most) = (f64::MAX, 0f64);
    let mut costs = [const { Vec::new() }; 4];
    for seed in 0..POOLS {
        let members = pool(seed, count, weights);
        let ring = build(&members, size);
        let total: u32 = members.iter().map(|member| member.weight).sum();
        let counts = counts(&ring);
        for member in &members {
            let ideal = f64::from(size) * f64::from(member.weight) / f64::from(total);
            let share = counts[member.id as usize] as f64 / ideal;
            (least, most) = (least.min(share), most.max(share));
        }
        for (change, costs) in changes(&members, seed).iter().zip(&mut costs) {
            costs.push(collateral(&ring, &build(change, size)));
        }
    }
    let members = pool(0, count, weights);
    let time = median(|| black_box(build(&members, size)));
    print!("| {count} | {size} | {least:.3}, {most:.3} |");
    for costs in costs {
        let average = costs.iter().sum::<f64>() / costs.len() as f64;
        print!(" {average:.2} ({:.2}) |", costs.into_iter().fold(0.0, f64::max));
    }
    println!(" {} |", time.as_micros());
}

/// Consecutive addresses, as real pools have them.
fn pool(seed: u32, count: u16, weights: &[u32]) -> Vec<Member> {
    let weights = weights.iter().cycle();
    (1..=count)
        .zip(weights)
        .map(|(id, &weight)| Member { id, identity: identity(seed, id), weight })
        .collect()
}

fn identity(seed: u32, host: u16) -> Identity {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + (seed << 16) + u32::from(host));
    Identity { address: address.into(), port: None }
}

/// Add, remove, weight x 2, weight x 0.5 of one member.
fn changes(members: &[Member], seed: u32) -> [Vec<Member>; 4] {
    let at = seed as usize % members.len();
    let (mut added, mut removed) = (members.to_vec(), members.to_vec());
    added.push(Member { id: 32_767, identity: identity(seed, 65_000), weight: 100 });
    removed.remove(at);
    let (mut doubled, mut halved) = (members.to_vec(), members.to_vec());
    doubled[at].weight *= 2;
    halved[at].weight /= 2;
    [added, removed, doubled, halved]
}

fn counts(ring: &[u16]) -> Vec<usize> {
    let mut counts = vec![0; 1 << 15];
    for &id in ring {
        counts[id as usize] += 1;
    }
    counts
}

/// All slots that moved less those that the new shares ask for, in per cent.
fn collateral(before: &[u16], after: &[u16]) -> f64 {
    let moved = before.iter().zip(after).filter(|(a, b)| a != b).count();
    let needed: usize = counts(before).iter().zip(counts(after)).map(|(a, b)| b.saturating_sub(*a)).sum();
    (moved - needed) as f64 * 100.0 / before.len() as f64
}

fn median<T>(mut run: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..BUILDS)
        .map(|_| {
            let start = Instant::now();
            black_box(run());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[BUILDS / 2]
}
