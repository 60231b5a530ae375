//! The test server as a program of its own, for tests.

fn main() -> std::process::ExitCode {
    lb_lab::server::main(std::env::args().skip(1))
}
