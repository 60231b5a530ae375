//! spike
use lb_userspace::{config::spec::Limits, dataplane::bpf as _b};
#[test]
fn load() {
    let t = std::time::Instant::now();
    let mut b = match lb_userspace::dataplane::bpf::load(&Limits::default()) { Ok((_m, p)) => p, Err(e) => panic!("{e}") };
    println!("loaded {:?}", t.elapsed());
    println!("{:?}", b.run_packet(&[0; 60], None));
}
