//! Writes refused attempts to the log, as counts, once in a while.

use std::time::Duration;

use envforge_commands::{Commands, Context};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Actor, Component, StreamId, Surface};
use envforge_domain::denial::{DenialCommand, Denials};
use envforge_domain::time::SharedClock;
use envforge_projections::Authorizer;
use tokio_util::sync::CancellationToken;

/// Equal attempts within this time are one entry of one report.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Reports until `stop`, and once more then.
pub(crate) async fn report(authorizer: Authorizer, commands: Commands, clock: SharedClock, stop: CancellationToken) {
    let mut tick = tokio::time::interval(REPORT_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let last = tokio::select! {
            () = stop.cancelled() => true,
            _ = tick.tick() => false,
        };
        let now = clock.now();
        for (org, attempts) in authorizer.denials().drain() {
            // An organization that does not exist has no stream to write to, and nobody to read it.
            if authorizer.hot().authorization.organization(org).is_none() {
                continue;
            }
            let permit = authorizer.permit_from_memory(
                Actor::System(Component::Identity),
                None,
                Action::DenialRecord,
                Resource::Organization(org),
                Surface::Api,
                now,
            );
            let permit = match permit {
                Ok(permit) => permit,
                Err(error) => {
                    tracing::warn!(%error, lost = attempts.len(), "denials could not be recorded");
                    continue;
                }
            };
            let kinds = attempts.len();
            let command = DenialCommand::Record { attempts };
            let done = commands.execute::<Denials>(&permit, &Context::new(now), &StreamId::denial(org), &command).await;
            if let Err(error) = done {
                metrics::counter!("envforge_denials_unrecorded_total").increment(kinds as u64);
                tracing::warn!(%error, kinds, "denials could not be recorded");
            }
        }
        if last {
            return;
        }
    }
}
