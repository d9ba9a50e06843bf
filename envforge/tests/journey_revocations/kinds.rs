//! The ways in which rights are taken, over the real surfaces: which grounds each takes away, and how they are given back.
//!
//! Not here: what stands on a ground (`person`).

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::person::Person;
use crate::probe::{Ground, Place, cli};
use crate::site::{PASSWORD, Site, text};
use crate::wire::{Answer, Request};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    OneOfOwnSessions,
    OneSessionByTheOwner,
    AllSessionsByTheOwner,
    Logout,
    LogoutOfAll,
    LogoutOnTheCommandLine,
    AllOnTheCommandLine,
    SignOutPage,
    SignOutPageEverywhere,
    PasswordChanged,
    RefreshTokenReused,
    Deactivated,
    TakenOut,
    RoleTaken,
    RoleTakenFromTeam,
    TakenOutOfTeam,
    TeamDeleted,
    LinkRevoked,
    LinkRotated,
    LinkNarrowed,
    TokenRevoked,
    TokenRotated,
    PolicyLinkIssuers,
    PolicyLinkFamilies,
    PolicyServiceTokens,
    WorkspaceClosed,
    WorkspaceArchived,
}

/// What an acknowledged revocation took, and where in the log it stands.
pub(crate) struct Revoked {
    pub(crate) taken: Vec<Ground>,
    pub(crate) position: Option<u64>,
}

impl Kind {
    pub(crate) const ALL: [Self; 27] = [
        Self::OneOfOwnSessions,
        Self::OneSessionByTheOwner,
        Self::AllSessionsByTheOwner,
        Self::Logout,
        Self::LogoutOfAll,
        Self::LogoutOnTheCommandLine,
        Self::AllOnTheCommandLine,
        Self::SignOutPage,
        Self::SignOutPageEverywhere,
        Self::PasswordChanged,
        Self::RefreshTokenReused,
        Self::Deactivated,
        Self::TakenOut,
        Self::RoleTaken,
        Self::RoleTakenFromTeam,
        Self::TakenOutOfTeam,
        Self::TeamDeleted,
        Self::LinkRevoked,
        Self::LinkRotated,
        Self::LinkNarrowed,
        Self::TokenRevoked,
        Self::TokenRotated,
        Self::PolicyLinkIssuers,
        Self::PolicyLinkFamilies,
        Self::PolicyServiceTokens,
        Self::WorkspaceClosed,
        Self::WorkspaceArchived,
    ];

    /// Whether it can happen to somebody who holds their role by way of a team, or does not.
    pub(crate) fn can_happen_to(self, person: &Person) -> bool {
        match self {
            Self::RoleTaken => person.team.is_none(),
            Self::RoleTakenFromTeam | Self::TakenOutOfTeam | Self::TeamDeleted => person.team.is_some(),
            _ => true,
        }
    }

    /// Whether it may be that only the command line stood on what it took.
    pub(crate) fn may_end_nothing_but_programs(self) -> bool {
        matches!(self, Self::OneOfOwnSessions | Self::OneSessionByTheOwner | Self::LogoutOnTheCommandLine)
    }

    /// Takes it away, and comes back with the acknowledgement.
    pub(crate) async fn revoke(self, site: &Site, person: &mut Person, rng: &mut StdRng) -> Revoked {
        let who = person.number;
        let user = person.user.clone();
        let link = person.link.as_ref().map(|link| (link.number, link.id.clone())).unwrap();
        let token = person.token.as_ref().map(|token| (token.number, token.slug.clone())).unwrap();
        let workspace = person.workspace.clone();
        let account = vec![Ground::Account(who)];
        let role = vec![Ground::Role(who)];
        let all = Place::ALL.map(|place| Ground::Session(who, place)).to_vec();
        let owner = async |method, path: String, body: Option<Value>| {
            site.as_owner(method, &format!("/v1/orgs/acme/{path}"), body.as_ref()).await
        };
        let (taken, answer) = match self {
            Self::OneOfOwnSessions | Self::OneSessionByTheOwner => {
                let place = Place::ALL[rng.random_range(0..Place::ALL.len())];
                let sessions = owner("GET", format!("members/{user}/sessions"), None).await.json();
                let items = sessions["items"].as_array().unwrap();
                let session = items.iter().find(|session| session["surface"] == place.surface());
                let session = text(session.unwrap_or_else(|| panic!("no {place:?}: {sessions}")), "id");
                let answer = if self == Self::OneOfOwnSessions {
                    person.done(site, person.at_api(site, "DELETE", &format!("/v1/me/sessions/{session}"))).await
                } else {
                    owner("DELETE", format!("members/{user}/sessions/{session}"), None).await
                };
                (vec![Ground::Session(who, place)], answer)
            }
            Self::AllSessionsByTheOwner => (all, owner("DELETE", format!("members/{user}/sessions"), None).await),
            Self::Logout => {
                let logout = person.at_api(site, "POST", "/v1/auth/logout");
                (vec![Ground::Session(who, Place::Api)], person.done(site, logout).await)
            }
            Self::LogoutOfAll => {
                let logout = person.at_console(site, "POST", "/v1/auth/logout-all");
                (all, person.done(site, logout).await)
            }
            Self::LogoutOnTheCommandLine => {
                person.type_in(site, &["logout"]).await;
                return Revoked { taken: vec![Ground::Session(who, Place::Cli)], position: None };
            }
            Self::AllOnTheCommandLine => {
                person.type_in(site, &["session", "revoke-all"]).await;
                return Revoked { taken: all, position: None };
            }
            Self::SignOutPage | Self::SignOutPageEverywhere => {
                let everywhere = self == Self::SignOutPageEverywhere;
                let form = if everywhere { "everywhere=yes" } else { "" }.to_owned();
                let out = person.at_console(site, "POST", "/sign-out").navigation("same-origin").form(form);
                let answer = site.send(&out, person.from).await;
                assert_eq!(answer.status, 303, "{answer:?}");
                (if everywhere { all } else { vec![Ground::Session(who, Place::Console)] }, answer)
            }
            Self::PasswordChanged => {
                let new = format!("{PASSWORD} {}", rng.random_range(1_000..1_000_000));
                let change = json!({ "password": person.password, "new_password": new });
                let change = person.at_api(site, "POST", "/v1/auth/change-password").json(&change);
                let answer = person.done(site, change).await;
                person.password = new;
                (all, answer)
            }
            Self::RefreshTokenReused => {
                // Somebody stole it: the second use is nobody's, and ends what the first one got.
                let token = person.api.as_ref().unwrap().1.lock().await.spent.clone().unwrap();
                let reuse = site.api("POST", "/v1/auth/refresh").json(&json!({ "refresh_token": token }));
                let answer = site.send(&reuse, person.from).await;
                assert_eq!(answer.status, 401, "{answer:?}");
                assert_eq!(answer.json()["code"], "refresh_token_reused", "{answer:?}");
                (vec![Ground::Session(who, Place::Api)], answer)
            }
            Self::Deactivated => (account, owner("POST", format!("members/{user}/deactivate"), None).await),
            Self::TakenOut => (account, owner("DELETE", format!("members/{user}"), None).await),
            Self::RoleTaken => (role, owner("DELETE", format!("roles?user={user}&role=admin"), None).await),
            Self::RoleTakenFromTeam => {
                let team = person.team.as_ref().unwrap();
                (role, owner("DELETE", format!("roles?team={team}&role=admin"), None).await)
            }
            Self::TakenOutOfTeam => {
                let team = person.team.as_ref().unwrap();
                (role, owner("DELETE", format!("teams/{team}/members/{user}"), None).await)
            }
            Self::TeamDeleted => {
                (role, owner("DELETE", format!("teams/{}", person.team.as_ref().unwrap()), None).await)
            }
            Self::LinkRevoked => {
                let revoke = person.at_api(site, "POST", &format!("/v1/orgs/acme/links/{}/revoke", link.1));
                let answer = person.done(site, revoke.json(&json!({ "reason": "done" }))).await;
                (vec![Ground::Link(link.0)], answer)
            }
            Self::LinkRotated => {
                let rotate = person.at_console(site, "POST", &format!("/v1/orgs/acme/links/{}/rotate", link.1));
                (vec![Ground::Link(link.0)], person.done(site, rotate).await)
            }
            Self::LinkNarrowed => {
                let families = json!({ "families": ["web"] });
                let answer = owner("PUT", format!("links/{}/families", link.1), Some(families)).await;
                (vec![Ground::LinkSockets(link.0)], answer)
            }
            Self::TokenRevoked => {
                let answer = owner("DELETE", format!("service-tokens/{}", token.1), None).await;
                (vec![Ground::Token(token.0)], answer)
            }
            Self::TokenRotated => {
                let rotate = format!("/v1/orgs/acme/service-tokens/{}/rotate", token.1);
                let rotate = person.at_api(site, "POST", &rotate).json(&json!({ "overlap_seconds": 0 }));
                (vec![Ground::Token(token.0)], person.done(site, rotate).await)
            }
            Self::PolicyLinkIssuers => (
                vec![Ground::Issuing],
                owner("PATCH", "policy".to_owned(), Some(json!({ "link_issuers": ["owner"] }))).await,
            ),
            Self::PolicyLinkFamilies => {
                let families = json!({ "link_families": ["web", "api", "assets", "marketing"] });
                (vec![Ground::AllLinkSockets], owner("PATCH", "policy".to_owned(), Some(families)).await)
            }
            Self::PolicyServiceTokens => {
                let none = json!({ "service_token_lifetime_max_seconds": 0 });
                (vec![Ground::AllTokens], owner("PATCH", "policy".to_owned(), Some(none)).await)
            }
            Self::WorkspaceClosed => {
                let mode = json!({ "access_mode": "tailscale_only" });
                let answer = owner("PUT", format!("workspaces/{}/access-mode", workspace.slug), Some(mode)).await;
                (vec![Ground::Workspace(workspace.number)], answer)
            }
            Self::WorkspaceArchived => {
                let answer = owner("POST", format!("workspaces/{}/archive", workspace.slug), None).await;
                (vec![Ground::Workspace(workspace.number)], answer)
            }
        };
        let position = answer.header("envforge-position").map(|position| position.parse().unwrap());
        Revoked { taken, position }
    }

    /// Gives back what the next rounds need.
    pub(crate) async fn undo(self, site: &Site, person: &mut Person) {
        let policy = async |change: Value| {
            site.as_owner("PATCH", "/v1/orgs/acme/policy", Some(&change)).await;
        };
        match self {
            Self::Deactivated => {
                let path = format!("/v1/orgs/acme/members/{}/reactivate", person.user);
                site.as_owner("POST", &path, None).await;
                person.give_role(site).await;
            }
            Self::TakenOut => {
                person.join(site).await;
                person.give_role(site).await;
            }
            Self::TeamDeleted => {
                person.make_team(site).await;
                person.give_role(site).await;
            }
            Self::RoleTaken | Self::RoleTakenFromTeam | Self::TakenOutOfTeam => person.give_role(site).await,
            Self::PolicyLinkIssuers => {
                policy(json!({ "link_issuers": ["owner", "admin", "developer", "mod"] })).await;
            }
            Self::PolicyLinkFamilies => {
                policy(json!({ "link_families": ["web", "api", "assets", "marketing", "websockets"] })).await;
            }
            Self::PolicyServiceTokens => {
                policy(json!({ "service_token_lifetime_max_seconds": 90 * 24 * 3_600 })).await;
            }
            Self::WorkspaceClosed => {
                let path = format!("/v1/orgs/acme/workspaces/{}/access-mode", person.workspace.slug);
                site.as_owner("PUT", &path, Some(&json!({ "access_mode": "signed_links" }))).await;
            }
            // Whoever was in it goes elsewhere.
            Self::WorkspaceArchived => {}
            _ => {}
        }
    }
}

impl Person {
    /// What they ask for is done.
    async fn done(&self, site: &Site, request: Request) -> Answer {
        let answer = site.send(&request, self.from).await;
        assert!((200..300).contains(&answer.status), "{} {}: {answer:?}", request.method, request.path);
        answer
    }

    /// A command that they type, signed in as they are.
    async fn type_in(&self, site: &Site, args: &[&str]) {
        let dir = site.dir.join(format!("person-{}", self.number)).join("typed");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("credentials.json"), self.cli.as_ref().unwrap()).unwrap();
        let output = cli(site, &dir, args).stdin(std::process::Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
