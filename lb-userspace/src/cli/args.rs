//! What may be typed.

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{config, logging::LogFormat};

/// Where a controller listens, unless told otherwise.
pub const SOCKET: &str = "/run/xlb/xlb.sock";

/// Where program, links and maps are pinned, unless told otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/xlb";

const EXIT_HELP: &str = "Exit status: 0 ok, 1 failed, 2 usage, 65 bad configuration, 69 not running, \
75 already running, 77 permission. XLB_LOG sets what is logged (debug, info, warn; default info for `run`).";

/// A layer-4 load balancer: an XDP program on the NIC, and its controller.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "xlb", version, after_help = EXIT_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the controller in the foreground; logs go to stderr
    Run(RunArgs),
    /// Validate a file and print what is wrong or doubtful; needs no root
    Check(CheckArgs),
    /// Print what applying a file would change; changes nothing
    Plan(PlanArgs),
    /// Load the running controller's file again; agrees to the removal of many backends
    Reload(ReloadArgs),
    /// Load the running controller's file again, and print what changed or why not
    Apply(ApplyArgs),
    /// Print services, backends, their health with the reason, shares and rates
    Status(StatusArgs),
    /// Print what happened and when
    Events(EventsArgs),
    /// Send a backend no new connections; the open ones stay with it until `drain_timeout`
    Drain(DrainArgs),
    /// Send a backend new connections again
    Enable(EnableArgs),
    /// Send a backend nothing any more, and do not probe it; its connections end
    Disable(DisableArgs),
    /// Take the data path off the interfaces that a controller left it on, and remove its pins
    Detach(DetachArgs),
    /// On a server: take the tunnel's header off packets that a balancer sends (ipip), by XDP
    Decap(DecapArgs),
}

/// How to reach the controller.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SocketArgs {
    /// The controller's socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
}

/// `xlb run`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RunArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Listen here instead of at the file's `admin.socket`
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Pin program, links and maps here: with them, forwarding outlives the controller
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// At the end (SIGTERM, SIGINT), leave the data path as it is: forwarding goes on with the last tables
    #[arg(long)]
    pub keep: bool,
    /// How the log is written
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// `xlb check`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `xlb plan`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PlanArgs {
    /// The file; the controller need not be able to read it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the controller is.
    #[command(flatten)]
    pub to: SocketArgs,
}

/// `xlb reload`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReloadArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the controller is.
    #[command(flatten)]
    pub to: SocketArgs,
}

/// `xlb apply`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ApplyArgs {
    /// Agree to everything, also to what moves every flow of a service (see `xlb plan`)
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the controller is.
    #[command(flatten)]
    pub to: SocketArgs,
}

/// `xlb status`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// Only this one
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the controller is.
    #[command(flatten)]
    pub to: SocketArgs,
}

/// `xlb events`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EventsArgs {
    /// Print new ones as they happen, also those of the next controller
    #[arg(short, long)]
    pub follow: bool,
    /// Print JSON, one event a line
    #[arg(long)]
    pub json: bool,
    /// Where the controller is.
    #[command(flatten)]
    pub to: SocketArgs,
}

/// What `drain`, `disable` and `enable` have in common.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct AdminArgs {
    /// Which backend, as `xlb status` names it: web/s1
    #[arg(value_name = "SERVICE/BACKEND")]
    pub backend: BackendName,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the controller is.
    #[command(flatten)]
    pub to: SocketArgs,
}

const SURVIVES: &str = "It survives reloads and restarts, until the file changes this backend's `state`.";

/// `xlb drain`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = SURVIVES)]
pub struct DrainArgs {
    /// Which, and where.
    #[command(flatten)]
    pub of: AdminArgs,
    /// Also when it is the service's last eligible backend
    #[arg(long)]
    pub force: bool,
    /// Show the pins that are left, and return when none is
    ///
    /// Returns 0 when no pin to the backend is left and the drain has lasted as long as --quiet says, or when the
    /// backend is gone. Returns 1 when pins are left after --timeout, or when the backend was enabled or disabled
    /// meanwhile. Connections that sent nothing in all that time are not seen, unless the service has
    /// `tracking: always`.
    #[arg(long)]
    pub wait: bool,
    /// Wait at most so long; the drain itself goes on
    #[arg(long, value_name = "TIME", value_parser = config::duration, default_value = "5m", requires = "wait")]
    pub timeout: Duration,
    /// Wait at least until the drain has lasted so long: a connection is seen once it sends something
    #[arg(long, value_name = "TIME", value_parser = config::duration, default_value = "10s", requires = "wait")]
    pub quiet: Duration,
}

/// `xlb disable`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = SURVIVES)]
pub struct DisableArgs {
    /// Which, and where.
    #[command(flatten)]
    pub of: AdminArgs,
    /// Also when it is the service's last eligible backend
    #[arg(long)]
    pub force: bool,
}

/// `xlb enable`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = SURVIVES)]
pub struct EnableArgs {
    /// Which, and where.
    #[command(flatten)]
    pub of: AdminArgs,
}

/// `xlb detach`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(
    after_help = "Forwarding ends at once. Refused while a controller runs there: stop that one first."
)]
pub struct DetachArgs {
    /// Where program, links and maps are pinned; of every version of xlb
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// `xlb decap`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DecapArgs {
    /// Where the tunnel's packets come in
    #[arg(long, value_name = "NAME")]
    pub interface: String,
    /// Only from balancers in this network (192.0.2.0/24, or one address); may be given several times
    #[arg(long, value_name = "CIDR")]
    pub allow: Vec<Cidr>,
}

/// One backend: `SERVICE/BACKEND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendName {
    /// Its service's name.
    pub service: String,
    /// Its own.
    pub backend: String,
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((service, backend)) if !service.is_empty() && !backend.is_empty() => {
                Ok(Self { service: service.to_owned(), backend: backend.to_owned() })
            }
            _ => Err("write it as SERVICE/BACKEND, as in web/s1".to_owned()),
        }
    }
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// With no bit set beyond the prefix.
    pub address: IpAddr,
    /// In bits: at most 32 or 128.
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| format!("`{address}` is not an IP address"))?;
        let (bits, width) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let prefix = match prefix {
            None => width,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|&prefix: &u8| prefix <= width && bits.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| format!("the prefix length `{bits}` is not a number from 0 to {width}"))?,
        };
        // A shift by 128 bits would overflow: with that prefix there is nothing beyond.
        if bits.checked_shl(u32::from(prefix)).unwrap_or(0) != 0 {
            return Err(format!("`{text}` has bits set beyond the prefix"));
        }
        Ok(Self { address, prefix })
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Command, ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command).map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_designs() {
        let Ok(Command::Run(run)) = parse("xlb run --config f") else { panic!() };
        assert_eq!(run.socket, None);
        assert_eq!(run.log_format, LogFormat::Human);
        assert_eq!((run.pin_dir, run.keep), (PIN_DIR.into(), false));
        assert_eq!(parse("xlb detach"), Ok(Command::Detach(DetachArgs { pin_dir: PIN_DIR.into() })));
        let Ok(Command::Status(status)) = parse("xlb status") else { panic!() };
        assert_eq!((status.to.socket, status.service, status.json), (SOCKET.into(), None, false));
        let Ok(Command::Drain(drain)) = parse("xlb drain web/s1") else { panic!() };
        assert_eq!((drain.wait, drain.force), (false, false));
        assert_eq!((drain.timeout, drain.quiet), (Duration::from_mins(5), Duration::from_secs(10)));
    }

    #[test]
    fn every_command_is_known() {
        for line in [
            "xlb run --config f --socket s --log-format json",
            "xlb run --config f --pin-dir /sys/fs/bpf/other --keep",
            "xlb detach --pin-dir /sys/fs/bpf/other",
            "xlb check f --json",
            "xlb plan f --json --socket s",
            "xlb reload --socket s",
            "xlb apply --force",
            "xlb status web --json",
            "xlb events -f",
            "xlb drain web/s1",
            "xlb drain web/s1 --wait --timeout 90s --quiet 0s --force --json",
            "xlb disable web/s1 --force",
            "xlb enable web/2001:db8::1 --socket s",
            "xlb disable web/s1",
            "xlb decap --interface eth0 --allow 10.0.0.0/8 --allow 2001:db8::/32",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        assert_eq!(parse("xlb drain web/s1 --timeout 5m"), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse("xlb drain web/s1 --wait --timeout 5"), Err(ErrorKind::ValueValidation));
        assert_eq!(parse("xlb drain web"), Err(ErrorKind::ValueValidation));
        assert_eq!(parse("xlb drain /s1"), Err(ErrorKind::ValueValidation));
        assert_eq!(parse("xlb run"), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse("xlb explode"), Err(ErrorKind::InvalidSubcommand));
    }

    #[test]
    fn networks_are_checked() {
        let cidr = |text: &str| text.parse::<Cidr>();
        assert_eq!(cidr("10.0.0.0/8"), Ok(Cidr { address: [10, 0, 0, 0].into(), prefix: 8 }));
        assert_eq!(cidr("10.1.2.3").unwrap().prefix, 32);
        assert_eq!(cidr("::/0").unwrap().prefix, 0);
        assert_eq!(cidr("2001:db8::1").unwrap().prefix, 128);
        for wrong in
            ["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "::1/0", "2001:db8::1/127", "a/8"]
        {
            assert!(cidr(wrong).is_err(), "{wrong}");
        }
    }
}
