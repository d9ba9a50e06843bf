//! Writes refused attempts to the log, as counts, once in a while.
//!
//! No count is lost and none is counted twice while the process lives: a report whose outcome is unknown is repeated as the
//! same command until there is an answer, and what comes meanwhile waits for the report after it.

use std::time::Duration;

use envforge_commands::{CommandError, Commands, Context, Repeated};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Actor, Component, StreamId, Surface};
use envforge_domain::denial::{DenialCommand, Denials, DeniedAttempts};
use envforge_domain::ids::OrgId;
use envforge_domain::time::SharedClock;
use envforge_projections::Authorizer;
use tokio_util::sync::CancellationToken;

/// Equal attempts within this time are one entry of one report.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Reports until `stop`, and once more then.
pub(crate) async fn report(authorizer: Authorizer, commands: Commands, clock: SharedClock, stop: CancellationToken) {
    let mut reporter = Reporter { authorizer, commands, clock, unanswered: Vec::new() };
    let mut tick = tokio::time::interval(REPORT_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let last = tokio::select! {
            () = stop.cancelled() => true,
            _ = tick.tick() => false,
        };
        reporter.write_all().await;
        if last {
            reporter.give_up();
            return;
        }
    }
}

/// One organization's attempts on their way to the log.
struct Report {
    org: OrgId,
    attempts: Vec<DeniedAttempts>,
    /// INVARIANT: the same for each try, so that a try that was stored is found instead of stored again.
    context: Context,
}

struct Reporter {
    authorizer: Authorizer,
    commands: Commands,
    clock: SharedClock,
    /// Tried and not answered; at most one an organization.
    unanswered: Vec<Report>,
}

impl Reporter {
    async fn write_all(&mut self) {
        for report in std::mem::take(&mut self.unanswered) {
            let context = Context { repeated: Some(Repeated { satisfied_at: None }), ..report.context };
            self.write(Report { context, ..report }).await;
        }
        let sink = self.authorizer.denials().clone();
        for (org, attempts) in sink.drain() {
            // An organization that does not exist has no stream to write to, and nobody to read it. What belongs to none is
            // the installation's own.
            if org != OrgId::SYSTEM && self.authorizer.hot().authorization.organization(org).is_none() {
                continue;
            }
            if self.unanswered.iter().any(|report| report.org == org) {
                sink.put_back(org, attempts);
                continue;
            }
            self.write(Report { org, attempts, context: Context::new(self.clock.now()) }).await;
        }
    }

    async fn write(&mut self, report: Report) {
        let permit = self.authorizer.permit_from_memory(
            Actor::System(Component::Identity),
            None,
            Action::DenialRecord,
            Resource::Organization(report.org),
            Surface::Api,
            self.clock.now(),
        );
        let permit = match permit {
            Ok(permit) => permit,
            Err(error) if report.context.repeated.is_some() => {
                tracing::warn!(%error, "a report of denials waits for its answer");
                self.unanswered.push(report);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "denials cannot be recorded now; they stand in the next report");
                self.authorizer.denials().put_back(report.org, report.attempts);
                return;
            }
        };
        let command = DenialCommand::Record { attempts: report.attempts.clone() };
        let stream = StreamId::denial(report.org);
        match self.commands.execute::<Denials>(&permit, &report.context, &stream, &command).await {
            Ok(_) => {}
            Err(error @ (CommandError::Unknown | CommandError::Contended | CommandError::Log(_))) => {
                tracing::warn!(%error, kinds = report.attempts.len(), "a report of denials was not answered; it is repeated");
                self.unanswered.push(report);
            }
            Err(error) => lost(&report, &error),
        }
    }

    /// The process ends; what has no answer yet never gets one.
    fn give_up(&mut self) {
        for report in self.unanswered.drain(..) {
            lost(&report, &"EnvForge is stopping");
        }
        for (org, attempts) in self.authorizer.denials().drain() {
            lost(&Report { org, attempts, context: Context::new(self.clock.now()) }, &"EnvForge is stopping");
        }
    }
}

fn lost(report: &Report, why: &dyn std::fmt::Display) {
    let kinds = report.attempts.len();
    metrics::counter!("envforge_denials_unrecorded_total").increment(kinds as u64);
    tracing::warn!(org = %report.org, kinds, "denials could not be recorded: {why}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};

    use async_trait::async_trait;
    use envforge_commands::organizations;
    use envforge_domain::access::{ActorFacts, Facts, Request, authorize};
    use envforge_domain::commit::{Commit, Expectation, Position};
    use envforge_domain::denial::{DenialEvent, RefusedRequest};
    use envforge_domain::event::Event;
    use envforge_domain::ids::{CorrelationId, UserId};
    use envforge_domain::time::UnixMillis;
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use envforge_eventlog::{AppendError, Appended, LogError, SharedLog};
    use envforge_identity::clock::SystemClock;
    use envforge_projections::{DenialSink, Hot};
    use envforge_testkit::{InterferedLog, Interference};
    use uuid::Uuid;

    use super::*;

    const WORKS: u8 = 0;
    const IS_GONE: u8 = 1;
    const STORES_AND_DOES_NOT_ANSWER: u8 = 2;

    /// The real log behind a network that does what the test says.
    struct Network(SharedLog, Arc<AtomicU8>);

    #[async_trait]
    impl Interference for Network {
        fn real(&self) -> &SharedLog {
            &self.0
        }

        async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
            match self.1.load(Ordering::SeqCst) {
                IS_GONE => Err(LogError::Unavailable("the network is gone".to_owned()).into()),
                STORES_AND_DOES_NOT_ANSWER => {
                    self.0.append(commits).await?;
                    Err(AppendError::Unknown)
                }
                _ => self.0.append(commits).await,
            }
        }
    }

    #[tokio::test]
    async fn counts_survive_a_log_that_is_gone_or_silent_and_count_once() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(SqliteLog::open(Config::new(directory.path().join("log"))).await.unwrap());
        let network = Arc::new(AtomicU8::new(WORKS));
        let log: SharedLog = Arc::new(InterferedLog(Network(log, Arc::clone(&network))));
        let stop = CancellationToken::new();
        let hot = Hot::start(Arc::clone(&log), stop.clone());
        let commands = Commands::new(Arc::clone(&log));
        let (org, user) = (OrgId::from_uuid(Uuid::from_u128(1)), UserId::from_uuid(Uuid::from_u128(2)));
        let (action, resource) = (Action::OrganizationCreate, Resource::Organization(org));
        let facts = Facts { position: Position::START, actor: ActorFacts::System };
        let now = UnixMillis::new(1_800_000_000_000);
        let actor = Actor::System(Component::Setup);
        let permit = authorize(&facts, &Request { actor, action, resource, surface: Surface::Cli, now }).unwrap();
        let slug = "acme".parse().unwrap();
        let (context, name) = (Context::new(now), "Acme".to_owned());
        let done = organizations::create(&commands, &permit, &context, org, slug, name, user).await.unwrap();
        hot.wait_for(done.position, Duration::from_secs(20)).await.unwrap();

        let sink = Arc::new(DenialSink::default());
        let authorizer = Authorizer::new(Arc::clone(&log), hot, Arc::clone(&sink));
        let mut reporter = Reporter { authorizer, commands, clock: Arc::new(SystemClock), unanswered: Vec::new() };
        for state in [IS_GONE, STORES_AND_DOES_NOT_ANSWER, STORES_AND_DOES_NOT_ANSWER, IS_GONE, WORKS, WORKS] {
            network.store(state, Ordering::SeqCst);
            let request = CorrelationId::from_uuid(Uuid::now_v7());
            let of = RefusedRequest { request, at: now, position: done.position };
            sink.record_failed_login(Some((org, user)), [192, 0, 2, 1].into(), Surface::Api, of);
            reporter.write_all().await;
        }
        assert!(reporter.unanswered.is_empty() && sink.drain().is_empty());
        let recorded = log.read_stream(&StreamId::denial(org), Position::START, 100).await.unwrap();
        let events = recorded.iter().flat_map(|recorded| &recorded.commit.events);
        let counted: u32 = events
            .map(|event| match event {
                Event::Denial(DenialEvent::Recorded { attempts }) => attempts.iter().map(|kind| kind.count).sum(),
                _ => 0,
            })
            .sum();
        assert_eq!(counted, 6);
        stop.cancel();
    }
}
