//! A log that is out of reach for a while, and one that is not the same any more.

use std::sync::Arc;

use async_trait::async_trait;
use envforge_domain::runtime::{Epoch, Runtime, RuntimeCommand};
use envforge_domain::time::Millis;
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, NotTheSameLog, SharedLog};
use envforge_testkit::{InterferedLog, Interference, eventually};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;

use crate::site::*;

/// The site's log for whoever follows it; it fails when it is told to.
struct Fragile {
    log: SharedLog,
    fault: watch::Sender<Option<LogError>>,
}

impl Fragile {
    fn over(site: &Site) -> Arc<InterferedLog<Self>> {
        Arc::new(InterferedLog(Self { log: Arc::clone(&site.log), fault: watch::channel(None).0 }))
    }
}

#[async_trait]
impl Interference for Fragile {
    fn real(&self) -> &SharedLog {
        &self.log
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        let mut fault = self.fault.subscribe();
        if let Some(error) = fault.borrow().clone() {
            return Err(error);
        }
        let commits = self.log.follow(from, filter).await?;
        let broken = stream::once(async move {
            let fault = fault.wait_for(Option::is_some).await.unwrap().clone();
            Err(fault.unwrap())
        });
        Ok(stream::select(commits, broken).boxed())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_while_the_log_was_out_of_reach_is_done_afterwards() {
    let site = Site::new().await;
    let fragile = Fragile::over(&site);
    let log = || Some(Arc::clone(&fragile) as SharedLog);
    let running = site.start_as(Agent { log: log(), ..Agent::default() }).await;
    let ticking = site.tick_on(Arc::clone(&fragile) as SharedLog);
    eventually("both follow", DEADLINE, async || (fragile.fault.receiver_count() == 2).then_some(())).await;
    fragile.fault.send_replace(Some(LogError::Unavailable("a test cut it off".to_owned())));
    eventually("both have lost it", DEADLINE, async || (fragile.fault.receiver_count() == 0).then_some(())).await;
    site.wake().await;
    assert!(matches!(site.state_of(site.workspace).await, Runtime::Waking { host: None, .. }));
    fragile.fault.send_replace(None);
    site.until("ready", ready).await;
    site.clock.skip(Millis::from_secs(31));
    site.until("asleep", asleep).await;
    ticking.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_the_same_any_more_ends_the_reactor_and_everything_it_ran() {
    let site = Site::new().await;
    let fragile = Fragile::over(&site);
    let log = Some(Arc::clone(&fragile) as SharedLog);
    let running = site.start_as(Agent { log, ..Agent::default() }).await;
    let ticking = site.tick_on(Arc::clone(&fragile) as SharedLog);
    site.wake().await;
    site.until("ready", ready).await;
    let address = site.address().await;
    let replaced = LogError::NotTheSameLog(NotTheSameLog::Replaced { found: "another".to_owned() });
    fragile.fault.send_replace(Some(replaced.clone()));
    assert_eq!(running.reactor.await.unwrap(), Err(replaced.clone()));
    assert_eq!(ticking.timers.await.unwrap(), Err(replaced));
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody says any more whether it may run");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_became_ready_after_it_was_given_up_is_ended() {
    let site = Site::with(
        "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; until test -e \"$ENVFORGE_DATA_DIR/gate\"; do sleep 0.02; done; \
         exec python3 -m http.server $PORT --bind 127.0.0.1",
    )
    .await;
    let fragile = Fragile::over(&site);
    let log = Some(Arc::clone(&fragile) as SharedLog);
    let running = site.start_as(Agent { log, ..Agent::default() }).await;
    site.wake().await;
    let pid = pid(&running, site.workspace).await;
    fragile.fault.send_replace(Some(LogError::Unavailable("a test cut it off".to_owned())));
    eventually("it has lost the log", DEADLINE, async || (fragile.fault.receiver_count() == 0).then_some(())).await;
    let given_up = RuntimeCommand::DeclareLost { epoch: Epoch(1), confirmed_by: None, now: site.now() };
    site.report(site.workspace, &given_up).await.unwrap();
    std::fs::write(running.place(site.workspace).join("data/gate"), "").unwrap();
    let up = async || running.host.is_up(site.workspace.id, 1).then_some(());
    eventually("it is up here and failed in the log", DEADLINE, up).await;
    fragile.fault.send_replace(None);
    until_ended(pid).await;
    assert!(failed(&site.state_of(site.workspace).await));
    running.stop().await;
}
