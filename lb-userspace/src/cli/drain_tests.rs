use super::*;
use crate::{
    api::{
        fake::{self, Fake},
        model::FlowStatus,
        server::{Limits as ServerLimits, Server},
    },
    cli::args::AdminArgs,
    config::spec::Admin,
};

const LIMITS: Limits = Limits { timeout: Duration::from_mins(5), quiet: Duration::from_secs(10) };

fn name() -> BackendName {
    "web/s2".parse().unwrap()
}

/// `s2`, which has been draining for so long.
fn draining(seconds: f64, pins: u64) -> BackendStatus {
    BackendStatus {
        state: AdminState::Drain,
        pins,
        draining_s: Some(seconds),
        drain_left_s: Some(300.0 - seconds),
        ..fake::backend("s2", 12)
    }
}

/// A status whose pins come from a walk that began `swept_s` ago.
fn status(backends: Vec<BackendStatus>, leaving: Vec<BackendStatus>, swept_s: f64) -> Status {
    let mut status = fake::status();
    status.services[0].backends = backends;
    status.services[0].leaving = leaving;
    status.flows = FlowStatus { swept_s: Some(swept_s), ..FlowStatus::default() };
    status
}

/// Waits under a controller that shows what `script` says at each moment, in seconds since the beginning. Answers the
/// lines that were shown, too.
async fn wait_under(
    limits: Limits,
    mut script: impl FnMut(f64) -> Status + Send + 'static,
) -> (Waited, Vec<String>) {
    let started = Instant::now();
    let fake = Fake::showing(move || script(started.elapsed().as_secs_f64()));
    let mut lines = Vec::new();
    let ask = async || Ok(fake.handle.status().await.unwrap());
    let waited = wait(&name(), limits, ask, |line| lines.push(line.to_owned())).await.unwrap();
    (waited, lines)
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_no_pin_is_left_and_shows_how_many_are() {
    // 20 pins, one less each second; walks every 2 s.
    let (waited, lines) = wait_under(LIMITS, |t| {
        let walk = t - t % 2.0;
        status(vec![draining(t, 20_u64.saturating_sub(walk as u64))], vec![], t - walk)
    })
    .await;
    assert_eq!((waited.end, waited.pins), (End::Drained, Some(0)));
    assert!((20.0..21.5).contains(&waited.took_s), "{waited:?}");
    assert_eq!(lines.len(), 20, "{lines:?}");
    assert_eq!(lines[1], "web/s2: 20 pins left, draining for 1.0s, deadline in 4m 59s");
    assert_eq!(waited.verdict(&name(), LIMITS), "web/s2: no pin is left after 20s");
}

#[tokio::test(start_paused = true)]
async fn what_the_deadline_reset_is_not_called_drained() {
    let until = |deadline: f64| {
        move |t: f64| {
            let left = (deadline - t).max(0.0);
            let pins = if left > 0.0 { 5 } else { 0 };
            let backend = BackendStatus { drain_left_s: Some(left), ..draining(t, pins) };
            status(vec![backend], vec![], 0.0)
        }
    };
    let (waited, _) = wait_under(LIMITS, until(20.0)).await;
    assert_eq!((waited.end, waited.at_deadline), (End::Drained, 5));
    let said = waited.verdict(&name(), LIMITS);
    assert!(said.contains("but 5 pins left at the drain's deadline"), "{said}");
    // The control: none is left before it.
    let (waited, _) = wait_under(LIMITS, |t| status(vec![draining(t, 0)], vec![], 0.0)).await;
    assert_eq!((waited.end, waited.at_deadline), (End::Drained, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_pins_has_to_last_as_long_as_quiet_says() {
    let idle = |t| status(vec![draining(t, 0)], vec![], 0.0);
    let (waited, lines) = wait_under(LIMITS, idle).await;
    assert_eq!(waited.end, End::Drained);
    assert!((10.0..11.5).contains(&waited.took_s), "{waited:?}");
    assert_eq!(lines[3], "web/s2: 0 pins left, draining for 3.0s (sure after 10s)");
    // One that has lasted long enough already is over at once.
    let (waited, lines) = wait_under(LIMITS, move |t| idle(t + 60.0)).await;
    assert_eq!((waited.end, lines.len()), (End::Drained, 0));
}

#[tokio::test(start_paused = true)]
async fn a_count_from_before_the_drain_is_not_believed() {
    let now = Limits { quiet: Duration::ZERO, ..LIMITS };
    // The walk that found nothing ended late, but it began before the slots moved; the next one finds a pin.
    let (waited, _) = wait_under(now, |t| match t {
        ..4.0 => status(vec![draining(t, 0)], vec![], t + 0.5),
        ..8.0 => status(vec![draining(t, 1)], vec![], t - 4.0),
        _ => status(vec![draining(t, 0)], vec![], t - 8.0),
    })
    .await;
    assert_eq!(waited.end, End::Drained);
    assert!(waited.took_s >= 8.0, "{waited:?}");
    // The control: had it begun a second after the drain did, that would have been the end.
    let (waited, _) = wait_under(now, |t| status(vec![draining(t, 0)], vec![], t - 1.0)).await;
    assert!(waited.took_s < 4.0, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_never_counted_is_not_zero() {
    let limits = Limits { timeout: Duration::from_secs(30), ..LIMITS };
    let (waited, lines) = wait_under(limits, |t| {
        let mut status = status(vec![draining(t, 0)], vec![], 0.0);
        status.flows.swept_s = None;
        status
    })
    .await;
    assert_eq!((waited.end, waited.pins), (End::TimedOut, None));
    assert_eq!(lines[9], "web/s2: pins not counted yet, draining for 9.0s, deadline in 4m 51s");
    assert_eq!(
        waited.verdict(&name(), limits),
        "web/s2: nobody knows how many pins are left after 30s; the drain goes on"
    );
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_is_one_of_waiting_only() {
    let limits = Limits { timeout: Duration::from_millis(2500), ..LIMITS };
    let (waited, _) = wait_under(limits, |t| status(vec![draining(t + 60.0, 1234)], vec![], 0.5)).await;
    assert_eq!((waited.end, waited.pins), (End::TimedOut, Some(1234)));
    assert!((2.5..2.6).contains(&waited.took_s), "{waited:?}");
    assert_eq!(waited.verdict(&name(), limits), "web/s2: 1,234 pins left after 2.5s; the drain goes on");

    let (waited, _) = wait_under(limits, |t| status(vec![draining(t, 0)], vec![], 0.5)).await;
    assert_eq!(
        waited.verdict(&name(), limits),
        "web/s2: no pin is left after 2.5s, but the drain has to last 10s to be sure; it goes on"
    );
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_leaves_is_watched_until_it_is_gone() {
    // Removed from the file after 3 s; another server has its name from then on. Gone after 20 s.
    let another = || BackendStatus { pins: 99, ..fake::backend("s2", 77) };
    let (waited, lines) = wait_under(LIMITS, move |t| match t {
        ..3.0 => status(vec![draining(t, 5)], vec![], 0.5),
        ..20.0 => {
            let old = BackendStatus { state: AdminState::Active, ..draining(t, 5) };
            status(vec![another()], vec![old], 0.5)
        }
        _ => status(vec![another()], vec![], 0.5),
    })
    .await;
    assert_eq!((waited.end, waited.pins, waited.state), (End::Gone, None, None));
    assert!((20.0..21.5).contains(&waited.took_s), "{waited:?}");
    assert_eq!(lines[5], "web/s2: 5 pins left, leaving, draining for 5.0s, deadline in 4m 55s");
    assert_eq!(waited.verdict(&name(), LIMITS), "web/s2: gone after 20s, so no pin is left");

    let (waited, _) = wait_under(LIMITS, |_| Status::default()).await;
    assert_eq!(waited.end, End::Gone, "its whole service is");
}

#[tokio::test(start_paused = true)]
async fn another_state_ends_the_waiting() {
    for (state, text) in [(AdminState::Active, "active"), (AdminState::Disabled, "disabled")] {
        let (waited, _) = wait_under(LIMITS, move |t| {
            let backend = if t < 5.0 {
                draining(t, 7)
            } else {
                BackendStatus { state, pins: 1, ..fake::backend("s2", 12) }
            };
            status(vec![backend], vec![], 0.5)
        })
        .await;
        assert_eq!((waited.end, waited.pins), (End::NoLongerDraining, Some(1)));
        let expected = format!("web/s2 is no longer draining: its state is {text} now, with 1 pin left");
        assert_eq!(waited.verdict(&name(), LIMITS), expected);
    }
}

/// Waits under a controller that is away from second 3 on, until `back`; the drain is over then.
async fn wait_for_absent(
    limits: Limits,
    back: f64,
    error: impl Fn() -> ClientError,
) -> (Result<Waited, ClientError>, f64, Vec<String>) {
    let started = Instant::now();
    let since = || started.elapsed().as_secs_f64();
    let mut lines = Vec::new();
    let ask = async || match since() {
        t if t < 3.0 => Ok(status(vec![draining(t, 7)], vec![], 0.5)),
        t if t < back => Err(error()),
        t => Ok(status(vec![draining(t + 60.0, 0)], vec![], 0.5)),
    };
    let result = wait(&name(), limits, ask, |line| lines.push(line.to_owned())).await;
    (result, since(), lines)
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_restarts_is_waited_for_but_not_for_ever() {
    let not_running = || ClientError::NotRunning("xlb.sock".into());
    let (result, _, lines) = wait_for_absent(LIMITS, 5.0, not_running).await;
    assert_eq!(result.unwrap().end, End::Drained);
    assert_eq!(lines[3..], ["web/s2: the controller does not answer; waiting for it"; 2]);

    let (result, took, _) = wait_for_absent(LIMITS, f64::MAX, not_running).await;
    assert_eq!(Exit::of(&result.unwrap_err().into()), Exit::NotRunning);
    assert!((15.0..20.0).contains(&took), "{took}");

    let short = Limits { timeout: Duration::from_secs(6), ..LIMITS };
    let (result, took, _) = wait_for_absent(short, f64::MAX, not_running).await;
    assert!(result.is_err() && (6.0..6.5).contains(&took), "{took}");

    let (result, took, _) = wait_for_absent(LIMITS, 5.0, || ClientError::Permission("xlb.sock".into())).await;
    assert!(result.is_err() && took < 3.5, "{took}");
}

/// The whole command against a fake controller behind a socket; answers what it printed.
async fn command(
    fake: Fake,
    args: impl FnOnce(&mut DrainArgs),
    progress: Progress,
) -> (anyhow::Result<Exit>, String, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin { socket: dir.path().join("xlb.sock"), listen: None };
    let server = Server::bind(&admin, ServerLimits::default()).unwrap();
    tokio::spawn(server.run(fake.handle.clone(), std::future::pending()));
    let to = crate::cli::args::SocketArgs { socket: admin.socket };
    let of = AdminArgs { backend: name(), json: false, to };
    let mut drain_args =
        DrainArgs { of, force: false, wait: false, timeout: LIMITS.timeout, quiet: LIMITS.quiet };
    args(&mut drain_args);
    let mut out = Vec::new();
    let result = drain(&drain_args, Screen { out: &mut out, progress }).await;
    (result, String::from_utf8(out).unwrap(), fake.asked())
}

#[tokio::test]
async fn a_drain_is_asked_for_and_its_answer_printed() {
    let (result, out, asked) = command(Fake::start(), |_| {}, Progress::Lines).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    assert_eq!(out, "web/s2: drain\n  2 backends are left\n");
    assert_eq!(asked, ["web/s2 drain"]);
}

#[tokio::test]
async fn the_last_eligible_backend_is_drained_by_force_only() {
    let last = |args: &mut DrainArgs| args.of.backend = "web/s1".parse().unwrap();
    let (result, out, _) = command(Fake::start(), last, Progress::Lines).await;
    let error = result.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::Failed);
    assert_eq!((error.to_string().as_str(), out.as_str()), ("s1 is the last eligible backend of web", ""));

    let forced = |args: &mut DrainArgs| {
        last(args);
        args.force = true;
    };
    let (result, _, asked) = command(Fake::start(), forced, Progress::Lines).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    assert_eq!(asked, ["web/s1 drain forced"]);
}

#[tokio::test]
async fn the_end_of_waiting_is_the_exit_status_and_the_last_line() {
    let waiting = |args: &mut DrainArgs| (args.wait, args.timeout) = (true, Duration::ZERO);
    let over = Fake::showing(|| status(vec![draining(60.0, 0)], vec![], 0.5));
    let (result, out, _) = command(over, waiting, Progress::Redrawn).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    assert_eq!(out, "web/s2: drain\n  2 backends are left\n\r\x1b[Kweb/s2: no pin is left after 0.0s\n");

    let busy = || Fake::showing(|| status(vec![draining(60.0, 3)], vec![], 0.5));
    let (result, out, _) = command(busy(), waiting, Progress::Lines).await;
    let error = result.unwrap_err();
    assert_eq!(Exit::of(&error), Exit::Failed);
    assert_eq!(error.to_string(), "web/s2: 3 pins left after 0.0s; the drain goes on");
    assert_eq!(out, "web/s2: drain\n  2 backends are left\n");

    let as_json = |args: &mut DrainArgs| {
        waiting(args);
        args.of.json = true;
    };
    let (result, out, _) = command(busy(), as_json, Progress::Silent).await;
    assert_eq!(result.unwrap(), Exit::Failed);
    let mut json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(json["wait"]["took_s"].take().is_number(), "{out}");
    let expected = serde_json::json!({
        "changed": true, "state": "drain", "notes": ["2 backends are left"],
        "wait": {"end": "timed_out", "pins": 3, "took_s": null, "at_deadline": 0},
    });
    assert_eq!(json, expected);
}

#[test]
fn progress_is_one_line_on_a_terminal_and_many_elsewhere() {
    let shown = |progress| {
        let mut screen = Screen { out: Vec::new(), progress };
        screen.show("a");
        screen.show("b");
        screen.clear();
        String::from_utf8(screen.out).unwrap()
    };
    assert_eq!(shown(Progress::Lines), "a\nb\n");
    assert_eq!(shown(Progress::Silent), "");
    let redrawn = "\r\x1b[K\x1b[?7la\x1b[?7h\r\x1b[K\x1b[?7lb\x1b[?7h\r\x1b[K";
    assert_eq!(shown(Progress::Redrawn), redrawn);
}
