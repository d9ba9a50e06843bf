//! Former event versions and how each becomes the next.
//!
//! A written version is frozen. When an event's shape changes, its new shape gets the next version in `event`, and one
//! step is added here that turns the former data into the next version's; `decode` walks the chain to the current one.

use serde_json::Value;

use super::{denial, job_run, manifest, organization, revocation, root_window, secrets, shell, user};

/// One step: data of type `from` become data of type `to`.
pub(super) struct Upcast {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) apply: fn(Value) -> Result<Value, String>,
}

/// Every step there is.
const STEPS: &[Upcast] = &[
    Upcast { from: "user.session_opened.v1", to: "user.session_opened.v2", apply: user::session_opened_v1_to_v2 },
    Upcast {
        from: "user.revocation_recorded.v1",
        to: "user.revocation_recorded.v2",
        apply: revocation::of_user_v1_to_v2,
    },
    Upcast {
        from: "dev_link.revocation_recorded.v1",
        to: "dev_link.revocation_recorded.v2",
        apply: revocation::of_link_v1_to_v2,
    },
    Upcast {
        from: "user.revocation_recorded.v2",
        to: "user.revocation_recorded.v3",
        apply: revocation::without_shells,
    },
    Upcast {
        from: "dev_link.revocation_recorded.v2",
        to: "dev_link.revocation_recorded.v3",
        apply: revocation::without_shells,
    },
    Upcast {
        from: "organization.revocation_recorded.v1",
        to: "organization.revocation_recorded.v2",
        apply: revocation::without_shells,
    },
    Upcast {
        from: "workspace.revocation_recorded.v1",
        to: "workspace.revocation_recorded.v2",
        apply: revocation::without_shells,
    },
    Upcast {
        from: "user.revocation_recorded.v3",
        to: "user.revocation_recorded.v4",
        apply: revocation::with_one_process,
    },
    Upcast {
        from: "dev_link.revocation_recorded.v3",
        to: "dev_link.revocation_recorded.v4",
        apply: revocation::with_one_process,
    },
    Upcast {
        from: "organization.revocation_recorded.v2",
        to: "organization.revocation_recorded.v3",
        apply: revocation::with_one_process,
    },
    Upcast {
        from: "workspace.revocation_recorded.v2",
        to: "workspace.revocation_recorded.v3",
        apply: revocation::with_one_process,
    },
    Upcast { from: "denial.recorded.v1", to: "denial.recorded.v2", apply: denial::recorded_v1_to_v2 },
    Upcast { from: "denial.recorded.v2", to: "denial.recorded.v3", apply: denial::recorded_v2_to_v3 },
    Upcast { from: "denial.recorded.v3", to: "denial.recorded.v4", apply: denial::without_requests },
    Upcast {
        from: "dev_link.attempts_blocked.v1",
        to: "dev_link.attempts_blocked.v2",
        apply: denial::without_requests,
    },
    Upcast {
        from: "organization.policy_changed.v1",
        to: "organization.policy_changed.v2",
        apply: organization::policy_changed_v1_to_v2,
    },
    Upcast {
        from: "organization.policy_changed.v2",
        to: "organization.policy_changed.v3",
        apply: organization::policy_changed_v2_to_v3,
    },
    Upcast {
        from: "organization.policy_changed.v3",
        to: "organization.policy_changed.v4",
        apply: organization::policy_changed_v3_to_v4,
    },
    Upcast { from: "root_window.requested.v1", to: "root_window.requested.v2", apply: root_window::requested_v1_to_v2 },
    Upcast { from: "root_window.closed.v1", to: "root_window.closed.v2", apply: root_window::closed_v1_to_v2 },
    Upcast { from: "workspace.created.v1", to: "workspace.created.v2", apply: manifest::with_jobs_without_secrets },
    Upcast {
        from: "workspace.manifest_changed.v1",
        to: "workspace.manifest_changed.v2",
        apply: manifest::with_jobs_without_secrets,
    },
    Upcast { from: "secrets.set.v1", to: "secrets.set.v2", apply: secrets::set_v1_to_v2 },
    Upcast { from: "shell.connected.v1", to: "shell.connected.v2", apply: shell::connected_v1_to_v2 },
    Upcast { from: "shell.connected.v2", to: "shell.connected.v3", apply: shell::connected_v2_to_v3 },
    Upcast { from: "job.started.v1", to: "job.started.v2", apply: job_run::started_v1_to_v2 },
];

pub(super) fn former_types() -> impl Iterator<Item = &'static str> {
    STEPS.iter().map(|step| step.from)
}

/// The type and data after the last applicable step; `None` where no step begins at this type.
pub(super) fn to_current(event_type: &str, data: &str) -> Option<Result<(&'static str, Value), String>> {
    walk(STEPS, event_type, data)
}

fn walk(steps: &[Upcast], event_type: &str, data: &str) -> Option<Result<(&'static str, Value), String>> {
    let next = |event_type: &str| steps.iter().find(|step| step.from == event_type);
    let mut step = next(event_type)?;
    let mut value: Value = match serde_json::from_str(data) {
        Ok(value) => value,
        Err(error) => return Some(Err(error.to_string())),
    };
    // A chain visits each step once at most, so a circle ends too.
    for _ in 0..steps.len() {
        value = match (step.apply)(value) {
            Ok(value) => value,
            Err(reason) => return Some(Err(reason)),
        };
        match next(step.to) {
            Some(following) => step = following,
            None => return Some(Ok((step.to, value))),
        }
    }
    Some(Err(format!("the upcasts of `{event_type}` go in a circle")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    const CHAIN: &[Upcast] = &[
        Upcast {
            from: "thing.made.v2",
            to: "thing.made.v3",
            apply: |mut data| {
                let name = data["name"].as_str().ok_or("`name` must be a text")?.to_uppercase();
                data["name"] = name.into();
                Ok(data)
            },
        },
        Upcast {
            from: "thing.made.v1",
            to: "thing.made.v2",
            apply: |mut data| {
                data["colour"] = "red".into();
                Ok(data)
            },
        },
    ];

    #[test]
    fn a_chain_is_walked_to_its_end_whatever_the_order_of_its_steps() {
        let (to, data) = walk(CHAIN, "thing.made.v1", r#"{"name":"box"}"#).unwrap().unwrap();
        assert_eq!(to, "thing.made.v3");
        assert_eq!(data, json!({"name": "BOX", "colour": "red"}));
    }

    #[test]
    fn a_type_without_a_step_is_left_to_the_current_schemas() {
        assert!(walk(CHAIN, "thing.made.v3", "{}").is_none());
        assert!(walk(CHAIN, "thing.lost.v1", "{}").is_none());
    }

    #[test]
    fn data_that_a_step_cannot_take_are_an_error() {
        assert_eq!(walk(CHAIN, "thing.made.v2", "{}").unwrap(), Err("`name` must be a text".to_owned()));
    }

    #[test]
    fn steps_in_a_circle_end_with_an_error() {
        const CIRCLE: &[Upcast] =
            &[Upcast { from: "a.v1", to: "a.v2", apply: Ok }, Upcast { from: "a.v2", to: "a.v1", apply: Ok }];
        assert!(walk(CIRCLE, "a.v1", "{}").unwrap().is_err());
    }
}
