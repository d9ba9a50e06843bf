//! The invitations view: who is invited to an organization and has not come yet, in memory.
//!
//! Not here: whether an invitation may still be accepted, which is decided on the log's leader, and its token (identity).

use ahash::AHashMap;
use envforge_domain::commit::{Recorded, StreamKind};
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::invitation::Invitation;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;
use parking_lot::RwLock;

/// An open invitation and when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenInvitation {
    pub invitation: Invitation,
    pub invited_at: UnixMillis,
}

#[derive(Default)]
pub struct InvitationView {
    open: RwLock<AHashMap<OrgId, AHashMap<UserId, OpenInvitation>>>,
}

impl InvitationView {
    /// The newest first; those whose time is over are left out.
    pub fn of(&self, org: OrgId, now: UnixMillis) -> Vec<OpenInvitation> {
        let open = self.open.read();
        let mut found: Vec<_> = open
            .get(&org)
            .into_iter()
            .flat_map(|open| open.values())
            .filter(|open| open.invitation.is_open(now))
            .cloned()
            .collect();
        found.sort_by_key(|open| std::cmp::Reverse((open.invited_at, open.invitation.user)));
        found
    }

    /// Whether somebody with this address is invited there already.
    pub fn is_invited(&self, org: OrgId, email: &str, now: UnixMillis) -> bool {
        let open = self.open.read();
        open.get(&org)
            .into_iter()
            .flat_map(|open| open.values())
            .any(|open| open.invitation.email.as_str() == email && open.invitation.is_open(now))
    }

    pub(crate) fn apply(&self, recorded: &Recorded) {
        if recorded.commit.stream.kind() != StreamKind::User {
            return;
        }
        let org = recorded.commit.stream.org();
        for event in &recorded.commit.events {
            match event {
                Event::User(UserEvent::Invited { invitation }) => {
                    let open =
                        OpenInvitation { invitation: invitation.clone(), invited_at: recorded.commit.decided_at };
                    let mut all = self.open.write();
                    let invitations = all.entry(org).or_default();
                    // What expired before this one was made is forgotten on the way.
                    invitations.retain(|_, known| known.invitation.is_open(open.invited_at));
                    invitations.insert(open.invitation.user, open);
                }
                Event::User(UserEvent::InvitationRevoked | UserEvent::InvitationAccepted) => {
                    let (mut all, Ok(user)) = (self.open.write(), recorded.commit.stream.key().parse::<UserId>())
                    else {
                        continue;
                    };
                    if let Some(invitations) = all.get_mut(&org) {
                        invitations.remove(&user);
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::time::Millis;
    use envforge_domain::user::EmailAddress;

    use super::*;
    use crate::given::{NOW, OWNER, Story, org, user};

    fn invited(number: u128, end: UnixMillis) -> UserEvent {
        UserEvent::Invited {
            invitation: Invitation {
                user: user(number),
                email: EmailAddress::parse(&format!("person{number}@example.com")).unwrap(),
                roles: vec![],
                invited_by: user(OWNER),
                expires_at: end,
            },
        }
    }

    #[test]
    fn an_invitation_is_open_until_it_is_accepted_revoked_or_over() {
        let mut story = Story::new();
        let end = NOW.plus(Millis::from_hours(1));
        for number in [501, 502, 503] {
            story.of_user(number, invited(number, end));
        }
        let open = |story: &Story, now| -> Vec<_> {
            let mut users: Vec<_> =
                story.hot.invitations.of(org(1), now).into_iter().map(|open| open.invitation.user).collect();
            users.sort_unstable();
            users
        };
        assert_eq!(open(&story, NOW), [user(501), user(502), user(503)]);
        assert!(story.hot.invitations.is_invited(org(1), "person501@example.com", NOW));
        assert!(!story.hot.invitations.is_invited(org(2), "person501@example.com", NOW));
        story.of_user(501, UserEvent::InvitationRevoked);
        story.of_user(502, UserEvent::InvitationAccepted);
        assert_eq!(open(&story, NOW), [user(503)]);
        assert!(open(&story, end).is_empty());
    }
}
