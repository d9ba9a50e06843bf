//! What can be said about a gateway's place besides its address: its domain, its clients' addresses, its port.
//!
//! Not here: what these settings mean for requests (`gateway`).

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct GatewayArgs {
    /// The gateway's domain is on the Public Suffix List. Browsers then keep workspaces apart as they do registrable
    /// domains, and the step from the share page to a workspace's host counts as one between sites.
    #[arg(long, env = "ENVFORGE_GATEWAY_DOMAIN_IS_PUBLIC_SUFFIX")]
    gateway_domain_is_public_suffix: bool,
    /// Let a reviewer arrive at a workspace from another address than the share page was posted from: for networks that
    /// change it between two requests, and behind a balancer that hides it.
    #[arg(long, env = "ENVFORGE_GATEWAY_HANDOFF_FROM_ANY_ADDRESS")]
    gateway_handoff_from_any_address: bool,
    /// Let several gateway processes listen on one port of this machine.
    #[arg(long, env = "ENVFORGE_GATEWAY_REUSE_PORT")]
    gateway_reuse_port: bool,
}

impl GatewayArgs {
    pub(crate) fn apply(&self, config: &mut envforge_gateway::Config) {
        config.domain_is_public_suffix = self.gateway_domain_is_public_suffix;
        config.handoff_bound_to_address = !self.gateway_handoff_from_any_address;
        config.reuse_port = self.gateway_reuse_port;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use envforge_gateway::{Config, Scheme};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gateway: GatewayArgs,
    }

    fn applied(words: &[&str]) -> (bool, bool, bool) {
        let line = Line::parse_from([&["serve"], words].concat());
        let mut config = Config::new("dev.envforge.ai", Scheme::Https, ([127, 0, 0, 1], 443).into());
        line.gateway.apply(&mut config);
        (config.domain_is_public_suffix, config.handoff_bound_to_address, config.reuse_port)
    }

    #[test]
    fn each_flag_reaches_the_gateway_and_none_changes_nothing() {
        assert_eq!(applied(&[]), (false, true, false));
        assert_eq!(applied(&["--gateway-domain-is-public-suffix"]), (true, true, false));
        assert_eq!(applied(&["--gateway-handoff-from-any-address"]), (false, false, false));
        assert_eq!(applied(&["--gateway-reuse-port"]), (false, true, true));
    }
}
