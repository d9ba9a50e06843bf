//! Tells the log which workspaces are in use: what idle sleep is decided on.
//!
//! The gateway counts in memory; this task reports each busy workspace at most once in `ACTIVITY_INTERVAL`, and also that
//! the last of its streams has ended: a stream that ends says nothing, and its end is what idle time counts from.

use std::collections::HashMap;
use std::sync::Arc;

use envforge_commands::{CommandError, Commands, Context, runtimes};
use envforge_domain::access::Action;
use envforge_domain::commit::{Actor, Component, Surface};
use envforge_domain::ids::WorkspaceId;
use envforge_domain::limits::ACTIVITY_INTERVAL;
use envforge_domain::runtime::RuntimeCommand;
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_gateway::{Activity, WorkspaceActivity};
use envforge_projections::gateway_view::RuntimePhase;
use envforge_projections::{Authorizer, Hot};
use tokio_util::sync::CancellationToken;

/// Reports until `stop`.
pub(crate) async fn report(
    activity: Activity,
    hot: Arc<Hot>,
    authorizer: Authorizer,
    commands: Commands,
    clock: SharedClock,
    stop: CancellationToken,
) {
    let mut reported = Reported::default();
    let mut tick = tokio::time::interval(ACTIVITY_INTERVAL.to_duration());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = clock.now();
        let mut all_told = true;
        for seen in activity.all() {
            let Some(at) = reported.due(&seen, now) else { continue };
            if report_one(&hot, &authorizer, &commands, &seen, at, now).await {
                reported.told(&seen);
            } else {
                all_told = false;
            }
        }
        // What is forgotten can be told no more.
        if all_told {
            activity.forget(now.minus(ACTIVITY_INTERVAL));
            reported.0.retain(|workspace, _| activity.of(*workspace).is_some());
        }
    }
}

/// What the log was told last: latest use and open streams.
#[derive(Default)]
struct Reported(HashMap<WorkspaceId, (UnixMillis, u32)>);

impl Reported {
    /// Until when the workspace was in use, where the log must be told.
    fn due(&self, seen: &WorkspaceActivity, now: UnixMillis) -> Option<UnixMillis> {
        let told = self.0.get(&seen.workspace);
        let was_open = told.map_or(0, |(_, open_streams)| *open_streams);
        // An open stream is use until now, and so was one that ended since the last look.
        if seen.open_streams > 0 || seen.open_streams != was_open {
            return Some(now);
        }
        (told.map(|(last_at, _)| *last_at) < Some(seen.last_at)).then_some(seen.last_at)
    }

    fn told(&mut self, seen: &WorkspaceActivity) {
        self.0.insert(seen.workspace, (seen.last_at, seen.open_streams));
    }
}

/// `false` where it should be tried again.
async fn report_one(
    hot: &Hot,
    authorizer: &Authorizer,
    commands: &Commands,
    seen: &WorkspaceActivity,
    at: UnixMillis,
    now: UnixMillis,
) -> bool {
    let runtime = hot.gateway.runtime(seen.workspace).borrow().clone();
    let (RuntimePhase::Ready, Some(resource)) = (runtime.phase, hot.resources.workspace(seen.workspace)) else {
        return true;
    };
    let permit = authorizer.permit_from_memory(
        Actor::System(Component::Gateway),
        None,
        Action::RuntimeRecordActivity,
        resource,
        Surface::Gateway,
        now,
    );
    let permit = match permit {
        Ok(permit) => permit,
        Err(error) => {
            tracing::warn!(%error, "activity could not be reported");
            return false;
        }
    };
    let Some(visitor) = seen.visitor else { return true };
    let command = RuntimeCommand::RecordActivity {
        epoch: runtime.epoch,
        at,
        open_streams: seen.open_streams,
        source: visitor.activity(),
    };
    match runtimes::report(commands, &permit, &Context::new(now), seen.workspace, &command).await {
        Ok(_) | Err(CommandError::Refused(_)) => true,
        Err(error) => {
            tracing::warn!(%error, "activity could not be reported");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_domain::ids::LinkId;
    use envforge_gateway::Visitor;
    use uuid::Uuid;

    fn seen(last_at: u64, open_streams: u32) -> WorkspaceActivity {
        WorkspaceActivity {
            workspace: WorkspaceId::from_uuid(Uuid::from_u128(1)),
            last_at: UnixMillis::new(last_at),
            open_streams,
            open_sockets: open_streams,
            visitor: Some(Visitor::Link(LinkId::from_uuid(Uuid::from_u128(2)))),
        }
    }

    fn tick(reported: &mut Reported, seen: &WorkspaceActivity, now: u64) -> Option<u64> {
        let due = reported.due(seen, UnixMillis::new(now));
        if due.is_some() {
            reported.told(seen);
        }
        due.map(UnixMillis::get)
    }

    #[test]
    fn the_end_of_a_quiet_stream_is_reported_once_as_use_until_now() {
        let mut reported = Reported::default();
        assert_eq!(tick(&mut reported, &seen(5, 1), 10), Some(10));
        assert_eq!(tick(&mut reported, &seen(5, 1), 20), Some(20), "open is in use, however quiet");
        assert_eq!(tick(&mut reported, &seen(5, 0), 30), Some(30), "nobody else says that it has ended");
        assert_eq!(tick(&mut reported, &seen(5, 0), 40), None);
        assert_eq!(tick(&mut reported, &seen(45, 0), 50), Some(45));
    }

    #[test]
    fn an_end_that_could_not_be_told_is_told_later() {
        let mut reported = Reported::default();
        assert_eq!(tick(&mut reported, &seen(5, 2), 10), Some(10));
        assert_eq!(reported.due(&seen(5, 0), UnixMillis::new(20)), Some(UnixMillis::new(20)));
        assert_eq!(tick(&mut reported, &seen(5, 0), 30), Some(30));
        assert_eq!(tick(&mut reported, &seen(5, 0), 40), None);
    }
}
