//! From a share URL to the app, and everything that must not work on the way.

use std::time::Duration;

use envforge_domain::commit::StreamId;
use envforge_domain::dev_link::{DevLinkEvent, Generation, RouteFamilies, RouteFamily};
use envforge_domain::event::Event;
use envforge_domain::ids::WorkspaceId;
use envforge_domain::time::Millis;
use envforge_domain::workspace::AccessMode;

use crate::app::App;
use crate::client::{Answer, NAVIGATION};
use crate::world::{COOKIE, DOMAIN, LINK, NewLink, World, now, until};

const OTHER: &str = "other67890123456789012345678901234567890abc";

impl World {
    fn share_head(&self, method: &str) -> String {
        format!(
            "{method} /share/{} HTTP/1.1\r\nHost: {DOMAIN}:{}\r\nUser-Agent: Test\r\n",
            self.token().expose(),
            self.port()
        )
    }

    /// What the button of the share page sends.
    async fn post_share(&self) -> Answer {
        let origin = self.gateway.origin();
        let head = self.share_head("POST");
        self.raw(format!("{head}Origin: {origin}\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nContent-Length: 0\r\n\r\n"))
            .await
            .unwrap()
    }

    async fn follow(&self, location: &str, agent: &str) -> Answer {
        let (host, path) = location.strip_prefix("http://").unwrap().split_once('/').unwrap();
        self.raw(format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n\r\n"
        ))
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn a_reviewer_gets_from_the_link_to_the_app() {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    let page = world.raw(world.share_head("GET") + "\r\n").await.unwrap();
    assert_eq!(page.status, 200);
    for part in ["Acme &lt;Works&gt;", "signed-links", "1 hour", "Pages, data, files", "<form method=\"post\">"] {
        assert!(page.body.contains(part), "no {part} in {}", page.body);
    }
    let policy = page.header("content-security-policy");
    assert!(policy.contains(&format!("form-action 'self' http://{}", world.host())), "{policy}");
    assert_eq!((page.header("cache-control"), page.header("x-robots-tag")), ("no-store", "noindex, nofollow"));
    let handed = world.post_share().await;
    assert_eq!(handed.status, 303);
    let location = handed.header("location");
    assert!(location.starts_with(&format!("http://{}/.envforge/handoff?code=", world.host())), "{location}");
    let opened = world.follow(location, "Test").await;
    assert_eq!((opened.status, opened.header("location")), (303, "/"));
    let cookie = opened.header("set-cookie");
    assert!(
        cookie.starts_with("envforge_session=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    let pair = cookie.split(';').next().unwrap();
    let request = world.get("/hello", "").replace(&world.cookie_header(), pair);
    assert!(world.raw(request).await.unwrap().body.starts_with("GET /hello\n"));
}

#[tokio::test]
async fn a_scanner_that_reads_the_link_opens_and_wakes_nothing() {
    let world = World::start().await;
    for method in ["GET", "HEAD"] {
        let mut client = world.client().await;
        client.send(world.share_head(method) + "\r\n").await;
        let head = client.head().await.unwrap();
        assert_eq!(head.status, 200);
        assert!(!head.headers.contains_key("set-cookie"));
    }
    assert_eq!(world.wakes().await, 0);
}

#[tokio::test]
async fn a_handoff_works_once_for_one_browser_on_one_host() {
    let world = World::start().await;
    let location = world.post_share().await.header("location").to_owned();
    let refused = world.follow(&location, "Another browser").await;
    assert_eq!((refused.status, refused.headers.contains_key("set-cookie")), (403, false));
    let elsewhere = location.replace("web--signed-links--acme", "web--other--acme");
    assert_eq!(world.follow(&elsewhere, "Test").await.status, 403);
    assert_eq!(world.follow(&location, "Test").await.status, 303);
    assert_eq!(world.follow(&location, "Test").await.status, 403);
    let broken = format!("{}x", &location[..location.len() - 1]);
    assert_eq!(world.follow(&broken, "Test").await.status, 403);
}

#[tokio::test]
async fn below_a_public_suffix_a_handoff_arrives_from_another_site() {
    for (is_public_suffix, status) in [(false, 403), (true, 303)] {
        let world = World::with(|config| config.domain_is_public_suffix = is_public_suffix).await;
        let location = world.post_share().await.header("location").to_owned();
        let (host, path) = location.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let arrival = |fetch: &str| {
            format!(
                "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Test\r\nSec-Fetch-Site: cross-site\r\n{fetch}\r\n"
            )
        };
        // Never as part of a page of another site.
        let framed = arrival("Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n");
        assert_eq!(world.raw(framed).await.unwrap().status, 403);
        let opened = arrival("Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n");
        assert_eq!(world.raw(opened).await.unwrap().status, status, "{is_public_suffix}");
    }
}

#[tokio::test]
async fn reloading_a_used_handoff_leads_on_whoever_is_in() {
    let world = World::start().await;
    let request = world.get("/.envforge/handoff?code=used", NAVIGATION);
    let answer = world.raw(request).await.unwrap();
    assert_eq!((answer.status, answer.header("location")), (303, "/"));
}

#[tokio::test]
async fn the_form_counts_only_from_our_own_page() {
    let world = World::start().await;
    let origin = world.gateway.origin().to_owned();
    let foreign = format!("http://{}", world.host());
    for (headers, accepted) in [
        (format!("Origin: {origin}\r\nSec-Fetch-Site: same-origin\r\n"), true),
        (format!("Origin: {origin}\r\n"), true),
        ("Origin: null\r\nSec-Fetch-Site: same-origin\r\n".to_owned(), true),
        (format!("Origin: {foreign}\r\nSec-Fetch-Site: same-site\r\n"), false),
        (format!("Origin: {foreign}\r\n"), false),
        (format!("Origin: {origin}\r\nSec-Fetch-Site: cross-site\r\n"), false),
        ("Origin: null\r\n".to_owned(), false),
        (String::new(), false),
    ] {
        let answer = world.raw(world.share_head("POST") + &headers + "Content-Length: 0\r\n\r\n").await.unwrap();
        assert_eq!(answer.status, if accepted { 303 } else { 403 }, "{headers:?}");
    }
}

#[tokio::test]
async fn links_that_open_nothing_any_more_all_look_alike() {
    let world = World::start().await;
    let get =
        |token: &str| format!("GET /share/{token} HTTP/1.1\r\nHost: {DOMAIN}:{}\r\n{NAVIGATION}\r\n", world.port());
    let good = world.token();
    let mut answers = vec![
        world.raw(get("nonsense")).await.unwrap(),
        world.raw(get(&format!("{}x", good.expose()))).await.unwrap(),
        world.raw(get("")).await.unwrap(),
    ];
    let mut unknown = world.claims();
    unknown.link = envforge_domain::ids::LinkId::from_uuid(uuid::Uuid::from_u128(77));
    answers.push(world.raw(get(world.sign(&unknown).expose())).await.unwrap());
    let mut older = world.claims();
    older.generation = Generation(0);
    answers.push(world.raw(get(world.sign(&older).expose())).await.unwrap());
    let mut late = world.claims();
    late.expires_at = now();
    answers.push(world.raw(get(world.sign(&late).expose())).await.unwrap());
    world.access_mode(AccessMode::TailscaleOnly).await;
    answers.push(world.raw(get(good.expose())).await.unwrap());
    world.access_mode(AccessMode::SignedLinks).await;
    assert_eq!(world.raw(get(good.expose())).await.unwrap().status, 200);
    world.revoke().await;
    answers.push(world.raw(get(good.expose())).await.unwrap());
    for answer in &answers {
        assert_eq!((answer.status, answer.body_of_any_request()), (410, answers[0].body_of_any_request()));
    }
    assert_eq!(world.post_share().await.status, 410);
}

#[tokio::test]
async fn hosts_without_session_do_not_say_whether_they_exist() {
    let world = World::start().await;
    let private = WorkspaceId::from_uuid(uuid::Uuid::from_u128(33));
    world.create_workspace(private, "private", AccessMode::TailscaleOnly).await;
    let ask = |host: String, more: &str| format!("GET /x HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
    let port = world.port();
    for more in [
        NAVIGATION,
        "Sec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\n",
        "Cookie: envforge_session=0000000890123456789012345678901234567890abc\r\n",
    ] {
        let mut answers = Vec::new();
        for host in [
            world.host(),
            format!("web--private--acme.{DOMAIN}:{port}"),
            format!("web--nothing--nobody.{DOMAIN}:{port}"),
            format!("not-a-label.{DOMAIN}:{port}"),
            "example.com".to_owned(),
            format!("{}.evil", world.host().split(':').next().unwrap()),
        ] {
            let answer = world.raw(ask(host, more)).await.unwrap();
            let headers: Vec<(String, String)> = answer
                .headers
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "date" | "envforge-request"))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect();
            answers.push((answer.status, headers, answer.body_of_any_request()));
        }
        assert_eq!(answers[0].0, 403);
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    }
    // A session changes nothing for a workspace that is private, nor for another one's host.
    world.access_mode(AccessMode::TailscaleOnly).await;
    assert_eq!(world.fetch("/x").await.code(), "access_required");
    let elsewhere = world.get("/x", "").replace("web--signed-links--acme", "web--nothing--nobody");
    assert_eq!(world.raw(elsewhere).await.unwrap().code(), "access_required");
}

#[tokio::test]
async fn two_session_cookies_are_refused_and_cleared() {
    let world = World::start().await;
    let request = world.get("/x", "").replace("Cookie: ", &format!("Cookie: {}; ", world.cookie_header()));
    let answer = world.raw(request).await.unwrap();
    assert_eq!(answer.code(), "duplicate_session");
    assert!(answer.header("set-cookie").contains("Max-Age=0"));
}

#[tokio::test]
async fn a_session_ends_with_its_link_and_says_why() {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    assert_eq!(world.fetch("/x").await.status, 200);
    world.rotate().await;
    assert_eq!(world.fetch("/x").await.code(), "link_rotated");
    world.issue(NewLink { number: 9, cookie: OTHER, lifetime: Millis::ZERO, ..LINK }).await;
    let page = world.raw(world.get("/x", NAVIGATION).replace(COOKIE, OTHER)).await.unwrap();
    assert!(page.status == 410 && page.body.contains("This link has expired"), "{page:?}");
    assert!(page.header("clear-site-data").contains("storage"));
    world.archive().await;
    let answer = world.raw(world.get("/x", "").replace(COOKIE, OTHER)).await.unwrap();
    assert_eq!(answer.code(), "workspace_closed");
    world.revoke().await;
    let answer = world.fetch("/x").await;
    assert!(answer.status == 410 && answer.code() != "link_rotated", "{answer:?}");
}

#[tokio::test]
async fn a_narrowed_link_opens_only_what_is_left_and_counts_what_it_refused() {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    world.narrow(RouteFamilies::NONE.with(RouteFamily::Web)).await;
    assert_eq!(world.fetch("/page").await.status, 200);
    let mut ids = Vec::new();
    for path in ["/api", "/api/orders"] {
        let answer = world.fetch(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "route_not_included"), "{path}");
        let id = answer.header("envforge-request").to_owned();
        assert!(answer.body.contains(&format!("urn:envforge:request:{id}")), "{}", answer.body);
        ids.push(id);
    }
    let (log, stream) = (std::sync::Arc::clone(&world.log), StreamId::dev_link(world.org(), world.link()));
    world.gateway.stop().await;
    // What was counted stands in the log once the gateway has stopped.
    let last = log.last_of_stream(&stream).await.unwrap().unwrap().commit;
    let Event::DevLink(DevLinkEvent::AttemptsBlocked { attempts, .. }) = &last.events[0] else { panic!("{last:?}") };
    assert_eq!((attempts[0].code.as_str(), attempts[0].count), ("route_not_included", 2));
    let mut named: Vec<_> = attempts[0].requests.iter().map(|request| request.request.to_string()).collect();
    named.sort_by_key(|id| ids.iter().position(|known| known == id));
    assert_eq!(named, ids);
}

#[tokio::test]
async fn refused_wakes_handoffs_and_share_pages_count_for_their_link() {
    let world = World::with(|config| config.limits.held_requests_per_link_max = 0).await;
    assert_eq!(world.fetch("/x").await.code(), "too_many_held");
    let location = world.post_share().await.header("location").to_owned();
    assert_eq!(world.follow(&location, "Test").await.status, 303);
    assert_eq!(world.follow(&location, "Test").await.status, 403);
    let foreign = "Origin: http://evil.example\r\nSec-Fetch-Site: cross-site\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(world.raw(world.share_head("POST") + foreign).await.unwrap().status, 403);
    world.revoke().await;
    assert_eq!(world.raw(world.share_head("GET") + "\r\n").await.unwrap().status, 410);
    // Who names no link of ours counts for nobody.
    let nonsense = format!("GET /share/nonsense HTTP/1.1\r\nHost: {DOMAIN}:{}\r\n\r\n", world.port());
    assert_eq!(world.raw(nonsense).await.unwrap().status, 410);
    let (log, stream) = (std::sync::Arc::clone(&world.log), StreamId::dev_link(world.org(), world.link()));
    world.gateway.stop().await;
    let last = log.last_of_stream(&stream).await.unwrap().unwrap().commit;
    let Event::DevLink(DevLinkEvent::AttemptsBlocked { attempts, .. }) = &last.events[0] else { panic!("{last:?}") };
    let mut counted: Vec<_> = attempts.iter().map(|kind| (kind.code.as_str(), kind.count)).collect();
    counted.sort_unstable();
    let expected = [("foreign_form", 1), ("handoff_invalid", 1), ("link_ended", 1), ("too_many_held", 1)];
    assert_eq!(counted, expected);
}

#[tokio::test]
async fn other_sites_cannot_act_in_a_reviewers_name() {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    let own = format!("http://{}", world.host());
    let table = [
        ("GET", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n".to_owned(), ""),
        ("GET", "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n".to_owned(), "foreign_site"),
        ("GET", "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n".to_owned(), "foreign_site"),
        ("GET", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nOrigin: http://evil\r\n".to_owned(), "foreign_site"),
        ("GET", "Origin: http://evil\r\n".to_owned(), "foreign_origin"),
        ("GET", "Sec-Fetch-Site: made-up\r\n".to_owned(), "foreign_site"),
        ("POST", format!("Origin: {own}\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n"), ""),
        ("POST", "Origin: null\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n".to_owned(), ""),
        ("POST", "Origin: null\r\nSec-Fetch-Site: cross-site\r\nContent-Length: 0\r\n".to_owned(), "foreign_origin"),
        ("POST", "Origin: http://web--other--acme.dev.localhost\r\nSec-Fetch-Site: same-site\r\nContent-Length: 0\r\n".to_owned(), "foreign_origin"),
        ("POST", "Content-Length: 0\r\n".to_owned(), "foreign_origin"),
        ("DELETE", "Sec-Fetch-Site: none\r\n".to_owned(), "foreign_origin"),
        ("POST", format!("Origin: {own}\r\nOrigin: http://evil\r\nContent-Length: 0\r\n"), "foreign_origin"),
        ("OPTIONS", "Origin: http://evil\r\nAccess-Control-Request-Method: POST\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\n".to_owned(), "foreign_site"),
    ];
    for (method, headers, code) in table {
        let answer = world.raw(world.get("/x", &headers).replacen("GET", method, 1)).await.unwrap();
        if code.is_empty() {
            assert_eq!(answer.status, 200, "{method} {headers:?}");
        } else {
            let denied = if answer.header("content-type").starts_with("text/html") {
                assert_eq!(answer.status, 403);
                code.to_owned()
            } else {
                answer.code()
            };
            assert_eq!(denied, code, "{method} {headers:?}");
        }
    }
}

#[tokio::test]
async fn without_word_from_the_log_nobody_passes() {
    // Above the log's heartbeat of one second.
    let world = World::with(|config| config.timeouts.staleness_max = Duration::from_millis(1_500)).await;
    let app = App::start().await;
    world.ready(app.address).await;
    assert_eq!(world.fetch("/x").await.status, 200);
    world.deaf.cancel();
    let heard = world.hot.gateway.freshness().last_heard;
    until("the view is stale", || heard.elapsed() > Duration::from_millis(1_600)).await;
    let answer = world.fetch("/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "authorization_stale"));
    assert_eq!(world.post_share().await.status, 503);
}

#[tokio::test]
async fn the_gateways_own_paths_and_domain_reach_no_app() {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    for path in ["/.envforge", "/.envforge/", "/.envforge/anything"] {
        assert_eq!(world.fetch(path).await.code(), "not_found", "{path}");
    }
    for path in ["/", "/share", "/api"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {DOMAIN}:{}\r\nCookie: envforge_session={COOKIE}\r\n\r\n",
            world.port()
        );
        assert_eq!(world.raw(request).await.unwrap().code(), "not_found", "{path}");
    }
    let robots =
        world.raw(format!("GET /robots.txt HTTP/1.1\r\nHost: {DOMAIN}:{}\r\n\r\n", world.port())).await.unwrap();
    assert!(robots.body.contains("Disallow: /"));
    let put = world.raw(world.share_head("PUT") + "Content-Length: 0\r\n\r\n").await.unwrap();
    assert_eq!((put.status, put.header("allow")), (405, "GET, HEAD, POST"));
    assert_eq!(app.seen.requests.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_expired_links_time_is_held_to_the_second() {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    world.issue(NewLink { number: 9, cookie: OTHER, lifetime: Millis::new(500), ..LINK }).await;
    let end = now().plus(Millis::new(500));
    let request = world.get("/x", "").replace(COOKIE, OTHER);
    assert_eq!(world.raw(&request).await.unwrap().status, 200);
    until("the link has expired", || now() >= end).await;
    assert_eq!(world.raw(&request).await.unwrap().code(), "link_expired");
}

#[tokio::test]
async fn a_handoff_may_be_redeemed_at_another_gateway_and_once_over_all() {
    let world = World::start().await;
    let other = world.another().await;
    let location = world.post_share().await.header("location").to_owned();
    let code = location.split_once("code=").unwrap().1;
    let redeem = |port: u16| {
        let request = format!(
            "GET /.envforge/handoff?code={code} HTTP/1.1\r\nHost: {}.{DOMAIN}:{port}\r\nUser-Agent: Test\r\n\r\n",
            crate::world::LABEL
        );
        async move {
            let mut client = crate::client::Client::connect(([127, 0, 0, 1], port).into()).await;
            client.send(request).await;
            client.answer().await.unwrap().status
        }
    };
    let (here, there) = tokio::join!(redeem(world.port()), redeem(other.address().port()));
    assert_eq!([here.min(there), here.max(there)], [303, 403]);
    other.stop().await;
}
