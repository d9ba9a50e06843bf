//! A host, or its control plane, is away for longer than a lease and its grace, while a keeper keeps what was awake.

use std::time::{Duration, Instant};

use envforge_testkit::wait_until;

use crate::proxy::Proxy;
use crate::site::{DEADLINE, Site, is_dead};
use crate::survival::{awake_at, count, keeper, until_renewed};

/// A lease, its grace, and whoever looks.
const GIVEN_UP: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_for_longer_than_a_lease_and_its_grace_is_metered_to_its_last_word() {
    let (site, dev) = Site::new();
    let proxy = Proxy::to(site.agents_port).await;
    let (mut site, mut dev, mut agent, started) = awake_at(site, dev, &proxy.address()).await;
    let held = keeper(&site, "builder");
    until_renewed(&site).await;
    // Cut off, and the agent is killed besides: its keeper goes on.
    proxy.cut();
    agent.kill9();
    wait_until("it is given up", GIVEN_UP, || count(&site, "runtime.lost") == 1);
    assert!(!is_dead(&started) && !is_dead(&held.to_string()), "nobody tells the keeper");
    let metered = site.awake_ms();
    site.until_metered().await;
    proxy.mend();
    let _agent = site.agent("builder", &proxy.address(), None);
    wait_until("the end of what the log gave up", DEADLINE, || is_dead(&started) && is_dead(&held.to_string()));
    site.until_metered().await;
    assert_eq!(site.awake_ms(), metered, "what was up without a lease is nobody's to pay");
    assert_eq!((count(&site, "runtime.ready"), count(&site, "runtime.lost")), (1, 1));

    // The control plane is killed for as long.
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    until_renewed(&site).await;
    dev.kill9();
    let away = Instant::now();
    wait_until("a lease and its grace", GIVEN_UP, || away.elapsed() > Duration::from_secs(62));
    assert!(!is_dead(&started), "nobody tells it");
    let restarted = jiff::Timestamp::now();
    dev = site.start().0;
    wait_until("the log's word about it", DEADLINE, || {
        let since = |(name, at): &(String, jiff::Timestamp)| *at >= restarted && name.contains("lease_renewed");
        count(&site, "runtime.lost") == 2 || site.runtime_events().iter().any(since)
    });
    // Whichever comes first, its host's word or the timer's, is all that the meter goes by.
    if count(&site, "runtime.lost") == 2 {
        wait_until("the end of what the log gave up", DEADLINE, || is_dead(&started));
    } else {
        assert!(!is_dead(&started), "it was taken again");
        site.json(&["workspace", "sleep", "main"]);
        site.until_phase("asleep").await;
    }
    wait_until("the end of it", DEADLINE, || is_dead(&started));
    site.until_metered().await;
    assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());
}
