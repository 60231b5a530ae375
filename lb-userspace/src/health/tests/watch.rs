//! What the guard asks of the probes, and what they know of the path.

use super::*;

#[tokio::test(start_paused = true)]
async fn every_result_of_the_watched_is_news_until_they_are_not() {
    let (mut checks, mut events) = Script::default().checks();
    checks.set_targets(vec![target("a", 1), target("b", 2)]);
    sleep(ms(500)).await;
    assert_eq!(events.recv().await.unwrap().len(), 2);
    checks.watch([key("a")].into());
    for _ in 0..3 {
        let event = next(&mut events).await;
        assert_eq!((event.key, event.changed, event.previous), (key("a"), false, Health::Up));
        assert_eq!(event.contact.proved, Some(event.at));
    }
    checks.watch(BTreeSet::new());
    sleep(ms(10_000)).await;
    assert!(events.recv().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_is_probed_at_once_and_then_at_its_interval() {
    let script = Script::default();
    let (mut checks, _events) = script.checks();
    checks.set_targets(vec![target("a", 1), target("b", 2)]);
    sleep(ms(1000)).await;
    let asked = Instant::now();
    checks.probe_now(&key("a"));
    checks.probe_now(&key("nobody"));
    sleep(ms(5)).await;
    assert_eq!((script.asked(1).len(), script.asked(2).len()), (2, 1));
    assert_eq!(script.asked(1)[1], asked);
    sleep(ms(2300)).await;
    let gap = script.asked(1)[2] - asked;
    assert!((ms(1790)..=ms(2210)).contains(&gap), "{gap:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_during_a_probe_is_probed_again_after_it() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (mut checks, _events) = HealthChecks::with_probe(Arc::new(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        async {
            sleep(ms(800)).await;
            Observation { reason: Reason::L4Timeout, detail: Detail::default(), latency: ms(800) }
        }
        .boxed()
    }));
    checks.set_targets(vec![target("a", 1)]);
    sleep(ms(300)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // Twice is once.
    checks.probe_now(&key("a"));
    checks.probe_now(&key("a"));
    sleep(ms(300)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 1, "never two at a time");
    sleep(ms(500)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn the_path_is_lost_at_the_first_silence_and_back_with_any_answer() {
    let script = Script::default();
    let silent = Reason::L4Timeout;
    script.set(1, &[PASS, PASS, silent, Reason::SockErr, silent, Reason::L4Refused, PASS]);
    let (mut checks, mut events) = script.checks();
    checks.set_targets(vec![target("a", 1)]);
    checks.watch([key("a")].into());
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(next(&mut events).await);
    }
    let ends = |at: usize| Some(seen[at].at);
    let starts = |at: usize| Some(seen[at].at.checked_sub(ms(1)).unwrap());
    let contact = |proved, lost, failed, back| Contact { proved, lost, failed, back };
    for (at, want) in [
        (0, contact(ends(0), None, None, ends(0))),
        (1, contact(ends(1), None, None, ends(0))),
        (2, contact(ends(1), starts(2), starts(2), ends(0))),
        (3, contact(ends(1), starts(2), starts(2), ends(0))),
        (4, contact(ends(1), starts(2), starts(4), ends(0))),
        (5, contact(ends(5), None, None, ends(5))),
        (6, contact(ends(6), None, None, ends(5))),
    ] {
        assert_eq!(seen[at].contact, want, "result {at}");
    }
    assert_eq!(checks.view()[&key("a")].contact.proved, ends(6));
    assert_eq!((checks.proved(&key("a")), checks.proved(&key("b"))), (ends(6), None));
}

#[tokio::test(start_paused = true)]
async fn silence_after_the_connection_proves_the_path_at_its_start_only() {
    let script = Script::default();
    script.set(1, &[Reason::L7Timeout]);
    let (mut checks, mut events) = script.checks();
    checks.set_targets(vec![target("a", 1)]);
    let event = next(&mut events).await;
    assert_eq!(event.contact.proved, Some(event.at.checked_sub(ms(1)).unwrap()));
    // Another server under this name has proved nothing.
    checks.set_targets(vec![target("a", 2)]);
    assert_eq!(checks.proved(&key("a")), None);
}
