//! spike
use lb_userspace::{config::spec::Limits, dataplane::bpf::Bpf};
#[test]
fn load() {
    let t = std::time::Instant::now();
    let mut b = match Bpf::load(&Limits::default()) { Ok(b) => b, Err(e) => panic!("{e}") };
    println!("loaded {:?}", t.elapsed());
    println!("{:?}", b.run_packet(&[0; 60], None));
}
