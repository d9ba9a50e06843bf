//! Host labels, paths and the families they belong to, and the names that stand in them.

use std::str::FromStr;
use std::sync::LazyLock;

use envforge_domain::ids::{HandoffId, LinkId, OrgId, SessionId, UserId, WorkspaceId};
use envforge_domain::manifest::{Manifest, PathPrefix};
use envforge_domain::routing::RouteTable;
use envforge_domain::slug::{HostLabel, OrgSlug, ProjectSlug, ServiceName, TeamSlug, WorkspaceSlug};
use envforge_identity::oidc::ReturnTo;
use envforge_identity::workspace_handoff::{browser_of, browser_text};
use http::{Request, Uri, Version};

use super::config;
use crate::forward::target_of;
use crate::host::{Host, split};
use crate::path::CheckedPath;
use crate::request_check;
use crate::sign_in::is_own_target;

static ROUTES: LazyLock<RouteTable> = LazyLock::new(|| {
    let text = "version: 1\nservices:\n  web:\n    command: a\n    route:\n      web: {}\n      websockets: [/live]\n  api:\n    command: b\n    \
                route: { api: /api, websockets: [/api/socket] }\n  docs:\n    command: c\n    route: { assets: /assets/v1 }\n  \
                about:\n    command: d\n    route: { marketing: /about }\n";
    let manifest = Manifest::parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    RouteTable::of(&manifest, &"web".parse().unwrap()).unwrap()
});

/// A line with a host, one with a target, and one with a name.
pub fn hosts_and_paths(bytes: &[u8]) {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    host(lines.next().unwrap_or_default());
    if let Some(target) = lines.next().and_then(|line| std::str::from_utf8(line).ok()) {
        path(target.split('?').next().unwrap_or_default());
        target_of_ours(target);
        over_http_2(target);
    }
    if let Some(text) = lines.next().and_then(|line| std::str::from_utf8(line).ok()) {
        names(text);
    }
}

fn host(raw: &[u8]) {
    if let Ok((name, port)) = split(raw) {
        assert!(!name.is_empty() && name.is_ascii() && name == name.to_ascii_lowercase());
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        let again = format!("{name}{port}");
        assert_eq!(split(again.as_bytes()).unwrap().0, name);
    }
    let Ok(Host::Workspace(host)) = Host::parse(&config(), raw) else { return };
    let text = std::str::from_utf8(raw).unwrap().to_ascii_lowercase();
    let name = text.strip_suffix(":443").unwrap_or(&text);
    assert_eq!(host.name(), name);
    assert_eq!(&*host.origin, format!("https://{name}"));
    let label = name.strip_suffix(".dev.envforge.ai").unwrap();
    assert!(label.len() <= 63 && !label.contains('.'));
    assert_eq!(host.label.to_string(), label);
    assert_eq!(HostLabel::parse(label), Some(host.label.clone()));
    let [service, workspace, org] = label.split("--").collect::<Vec<_>>()[..] else { panic!("{label}") };
    assert_eq!(host.label.service().as_str(), service);
    assert_eq!((host.label.workspace().as_str(), host.label.org().as_str()), (workspace, org));
    let again = HostLabel::new(service.parse().unwrap(), workspace.parse().unwrap(), org.parse().unwrap());
    assert_eq!(again, Ok(host.label));
}

/// Whoever decodes a path that passed, once or again, or takes empty segments out of it, sees the same family.
fn path(text: &str) {
    let Ok(checked) = CheckedPath::new(text) else { return };
    assert_eq!(checked.as_str(), text);
    let decoded = percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    assert!(!decoded.iter().any(|byte| *byte < 0x20 || *byte == 0x7f), "{text}");
    assert!(!decoded.split(|byte| matches!(byte, b'/' | b'\\')).any(is_dots), "{text}");
    let Ok(passed) = checked.for_prefix() else { return };
    assert!(!decoded.contains(&b'%') && !decoded.contains(&b'\\') && !decoded.contains(&b';'), "{text}");
    let lossy = String::from_utf8_lossy(&decoded);
    let collapsed =
        format!("/{}", lossy.split('/').filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join("/"));
    for upgrade in [false, true] {
        let ours = ROUTES.route(passed, upgrade);
        assert_eq!(ours, ROUTES.route(&lossy, upgrade), "{text}");
        assert_eq!(ours, ROUTES.route(&collapsed, upgrade), "{text}");
        let below = |prefix: &str| passed == prefix || passed.starts_with(&format!("{prefix}/"));
        let expected = match () {
            () if below("/api") => "api",
            () if below("/assets/v1") => "docs",
            () if below("/about") => "about",
            () => "web",
        };
        if !upgrade {
            assert_eq!(ours.unwrap().service.as_str(), expected);
        } else if ours.is_some() {
            assert!((below("/live") && expected == "web") || below("/api/socket"), "{text}");
        }
    }
}

/// Over HTTP/2 nothing has looked at the bytes before.
fn over_http_2(target: &str) {
    let Ok(uri) = format!("https://a.dev{target}").parse::<Uri>() else { return };
    let request = Request::builder().version(Version::HTTP_2).uri(uri).body(()).unwrap();
    if request_check::check(&request).is_ok() {
        assert!(target_of(request.uri()).bytes().all(|byte| byte.is_ascii_graphic()), "{target}");
    }
}

/// A place to go back to, by the gateway's rule and by the API's.
fn target_of_ours(text: &str) {
    assert_eq!(is_own_target(text), ReturnTo::parse(text).is_ok(), "{text}");
    if is_own_target(text) {
        assert!(text.starts_with('/') && !text[1..].starts_with(['/', '\\']));
        assert!(!text.contains(|char: char| char.is_ascii_control() || char.is_ascii_whitespace()));
    }
}

fn names(text: &str) {
    fn same<T: FromStr + ToString>(text: &str) {
        if let Ok(name) = text.parse::<T>() {
            assert_eq!(name.to_string(), text);
        }
    }
    same::<OrgSlug>(text);
    same::<WorkspaceSlug>(text);
    same::<ProjectSlug>(text);
    same::<TeamSlug>(text);
    same::<ServiceName>(text);
    same::<LinkId>(text);
    same::<OrgId>(text);
    same::<UserId>(text);
    same::<WorkspaceId>(text);
    same::<SessionId>(text);
    same::<HandoffId>(text);
    if let Some(browser) = browser_of(text) {
        assert_eq!(browser_text(browser), text);
    }
    if let Some(label) = HostLabel::parse(text) {
        assert_eq!(label.to_string(), text);
    }
    if let Some(prefix) = PathPrefix::parse(text) {
        assert_eq!(CheckedPath::new(prefix.as_str()).and_then(CheckedPath::for_prefix), Ok(text));
    }
}
