//! Permits of EnvForge's own components, from the same policy as everybody's.

use envforge_domain::access::{Action, ActorFacts, Denial, Facts, Permit, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Component, Position, Surface};
use envforge_domain::time::UnixMillis;

/// Asks the policy for one action of a component on the agent surface.
pub(crate) fn system_permit(
    component: Component,
    action: Action,
    resource: Resource,
    position: Position,
    now: UnixMillis,
) -> Result<Permit, Denial> {
    let facts = Facts { position, actor: ActorFacts::System };
    authorize(&facts, &Request { actor: Actor::System(component), action, resource, surface: Surface::Agent, now })
}
