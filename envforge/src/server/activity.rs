//! Tells the log which workspaces are in use: what idle sleep is decided on.
//!
//! The gateway counts in memory; this task reports each busy workspace at most once in `ACTIVITY_INTERVAL`.

use std::collections::HashMap;
use std::sync::Arc;

use envforge_commands::{CommandError, Commands, Context, runtimes};
use envforge_domain::access::Action;
use envforge_domain::commit::{Actor, Component, Surface};
use envforge_domain::ids::WorkspaceId;
use envforge_domain::limits::ACTIVITY_INTERVAL;
use envforge_domain::runtime::{ActivitySource, RuntimeCommand};
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
    let mut reported: HashMap<WorkspaceId, UnixMillis> = HashMap::new();
    let mut tick = tokio::time::interval(ACTIVITY_INTERVAL.to_duration());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = clock.now();
        for seen in activity.all() {
            let used = seen.open_streams > 0 || reported.get(&seen.workspace) < Some(&seen.last_at);
            if used && report_one(&hot, &authorizer, &commands, &seen, now).await {
                reported.insert(seen.workspace, seen.last_at);
            }
        }
        activity.forget(now.minus(ACTIVITY_INTERVAL));
        reported.retain(|workspace, _| activity.of(*workspace).is_some());
    }
}

/// `false` where it should be tried again.
async fn report_one(
    hot: &Hot,
    authorizer: &Authorizer,
    commands: &Commands,
    seen: &WorkspaceActivity,
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
    let Some(link) = seen.link else { return true };
    let command = RuntimeCommand::RecordActivity {
        epoch: runtime.epoch,
        // An open stream is use until now.
        at: if seen.open_streams > 0 { now } else { seen.last_at },
        open_streams: seen.open_streams,
        source: ActivitySource::Link(link),
    };
    match runtimes::report(commands, &permit, &Context::new(now), seen.workspace, &command).await {
        Ok(_) | Err(CommandError::Refused(_)) => true,
        Err(error) => {
            tracing::warn!(%error, "activity could not be reported");
            false
        }
    }
}
