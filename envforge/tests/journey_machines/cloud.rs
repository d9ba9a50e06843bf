//! A cloud of this machine: moto for the API, and for each instance that it shows as running a network namespace, in which what
//! cloud-init and systemd would do is done with nothing but the user data of the launch and the unit of the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envforge_testkit::{Moto, TestProcess};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

const UNIT: &str = include_str!("../../../deploy/aws/image/envforge-agent.service");
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Ends with everything in it on drop.
pub(crate) struct Cloud {
    pub(crate) moto: Arc<Moto>,
    network: Arc<Network>,
    endpoint: String,
    machines: Arc<Mutex<BTreeMap<String, Machine>>>,
    looking: tokio::task::JoinHandle<()>,
}

struct Network {
    bridge: String,
    /// The first three numbers of its addresses.
    prefix: String,
}

/// An instance's machine. Its disk stays while it is off.
struct Machine {
    number: usize,
    disk: PathBuf,
    agent: Option<TestProcess>,
    boots: u32,
}

fn ip(args: &[&str]) -> Output {
    Command::new("ip").args(args).output().unwrap()
}

#[track_caller]
fn ip_does(args: &[&str]) {
    let output = ip(args);
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What stands in the way of namespaces here, if anything.
pub(crate) fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root");
    }
    if envforge_testkit::tools::on_path("ip").is_none() {
        return Some("`ip` (iproute2) is not installed");
    }
    let name = format!("ef{}x", std::process::id());
    let made = ip(&["netns", "add", &name]).status.success();
    ip(&["netns", "del", &name]);
    (!made).then_some("this kernel, or this container, gives no network namespaces")
}

impl Network {
    fn new() -> Self {
        let id = std::process::id();
        let (bridge, prefix) = (format!("efb{id}"), format!("10.{}.{}", 201 + (id >> 8) % 50, id % 256));
        ip_does(&["link", "add", &bridge, "type", "bridge"]);
        let network = Self { bridge, prefix };
        ip_does(&["addr", "add", &format!("{}/24", network.gateway()), "dev", &network.bridge]);
        ip_does(&["link", "set", &network.bridge, "up"]);
        network
    }

    /// The address of what is not in any machine.
    fn gateway(&self) -> String {
        format!("{}.1", self.prefix)
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.bridge)
    }

    fn plug_in(&self, number: usize) {
        let (namespace, link) = (self.namespace(number), format!("{}x{number}", self.bridge.replace("efb", "v")));
        ip_does(&["netns", "add", &namespace]);
        ip_does(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip_does(&["link", "set", &link, "master", &self.bridge, "up"]);
        let address = format!("{}.{}/24", self.prefix, 10 + number);
        ip_does(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"]);
        ip_does(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip_does(&["-n", &namespace, "link", "set", "lo", "up"]);
    }

    /// Power off: whatever runs in the machine is gone at once.
    fn power_off(&self, number: usize) {
        let pids = String::from_utf8(ip(&["netns", "pids", &self.namespace(number)]).stdout).unwrap();
        for pid in pids.lines().filter_map(|pid| pid.trim().parse().ok()).filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        ip(&["netns", "del", &self.namespace(number)]);
    }
}

impl Cloud {
    pub(crate) async fn new(disks: &Path) -> Self {
        let network = Arc::new(Network::new());
        let moto = Arc::new(Moto::start());
        // moto listens on loopback, which every machine has one of its own of.
        let listener = TcpListener::bind((network.gateway(), 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let to = moto.endpoint().trim_start_matches("http://").to_owned();
        tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let to = to.clone();
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                });
            }
        });
        let machines: Arc<Mutex<BTreeMap<String, Machine>>> = Arc::default();
        let hypervisor = Hypervisor {
            moto: Arc::clone(&moto),
            network: Arc::clone(&network),
            endpoint: endpoint.clone(),
            machines: Arc::clone(&machines),
            disks: disks.to_owned(),
        };
        let looking = tokio::task::spawn(async move {
            loop {
                let hypervisor = hypervisor.clone();
                tokio::task::spawn_blocking(move || hypervisor.look()).await.unwrap();
                tokio::time::sleep(LOOK_INTERVAL).await; // pause: nobody tells when an instance's state changes
            }
        });
        Self { moto, network, endpoint, machines, looking }
    }

    /// Where the control plane listens for agents.
    pub(crate) fn gateway(&self) -> String {
        self.network.gateway()
    }

    /// What the SDKs read of their environment to ask this cloud.
    pub(crate) fn environment(&self) -> [(&'static str, String); 3] {
        environment(&self.endpoint)
    }

    /// A customer-managed key, its ARN.
    pub(crate) async fn key(&self) -> String {
        let told = self.ask("kms", "TrentService.CreateKey").await;
        told["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// Names of all enrolment parameters that lie there now.
    pub(crate) async fn parameters(&self) -> Vec<String> {
        let told = self.ask("ssm", "AmazonSSM.DescribeParameters").await;
        let names = told["Parameters"].as_array().unwrap().iter();
        names.map(|parameter| parameter["Name"].as_str().unwrap().to_owned()).collect()
    }

    /// moto tells services apart by what a request is signed for, and looks at no signature.
    async fn ask(&self, service: &str, target: &str) -> Value {
        let credential = format!("Credential=test/20260101/eu-central-1/{service}/aws4_request");
        let signed = format!("AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0");
        let ask = reqwest::Client::new().post(&self.endpoint).header("X-Amz-Target", target);
        let ask = ask.header("Content-Type", "application/x-amz-json-1.1").header("Authorization", signed);
        let answer = ask.body("{}").send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{target}: {answer}"))
    }

    /// Ids and states.
    pub(crate) fn instances(&self) -> Vec<(String, String)> {
        let of = |instance: &Instance| (instance.id.clone(), instance.state.clone());
        instances(&self.moto).iter().map(of).collect()
    }

    /// Ids of the instances of a purpose that are not ended.
    pub(crate) fn living(&self, purpose: &str) -> Vec<String> {
        let all = instances(&self.moto).into_iter();
        all.filter(|one| one.purpose == purpose && one.state != "terminated").map(|one| one.id).collect()
    }

    /// What people call the host on an instance.
    pub(crate) fn host_name(&self, instance: &str) -> String {
        let all = instances(&self.moto);
        let user_data = &all.iter().find(|one| one.id == instance).unwrap().user_data;
        let id = user_data.split("hst_").nth(1).unwrap();
        format!("machine-{}", &id[20..32])
    }

    /// Ends the agent on an instance, as kill -9 does; systemd starts another one.
    pub(crate) fn kill_agent(&self, instance: &str) {
        let mut machines = self.machines.lock().unwrap();
        machines.get_mut(instance).unwrap().agent.as_mut().unwrap().kill9();
    }

    /// The agent on an instance hangs; systemd and EC2 take it for well.
    pub(crate) fn freeze_agent(&self, instance: &str) {
        let mut machines = self.machines.lock().unwrap();
        machines.get_mut(instance).unwrap().agent.as_mut().unwrap().signal(Signal::SIGSTOP);
    }

    pub(crate) fn boots(&self, instance: &str) -> u32 {
        self.machines.lock().unwrap()[instance].boots
    }

    /// A folder of an instance's disk.
    pub(crate) fn disk(&self, instance: &str) -> PathBuf {
        self.machines.lock().unwrap()[instance].disk.clone()
    }

    /// What all agents said so far.
    pub(crate) fn said(&self) -> String {
        let machines = self.machines.lock().unwrap();
        let said = machines.values().filter_map(|machine| machine.agent.as_ref()).map(TestProcess::stderr);
        said.collect::<Vec<_>>().join("\n")
    }
}

fn environment(endpoint: &str) -> [(&'static str, String); 3] {
    // On AWS the instance profile takes the place of the two.
    let fixed = || "test".to_owned();
    [("AWS_ENDPOINT_URL", endpoint.to_owned()), ("AWS_ACCESS_KEY_ID", fixed()), ("AWS_SECRET_ACCESS_KEY", fixed())]
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.looking.abort();
        let machines = self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for machine in machines.values() {
            self.network.power_off(machine.number);
        }
        ip(&["link", "del", &self.network.bridge]);
    }
}

struct Instance {
    id: String,
    state: String,
    user_data: String,
    purpose: String,
}

fn instances(moto: &Moto) -> Vec<Instance> {
    let told: Value = serde_json::from_str(&moto.pull("instances", "{}")).unwrap();
    let text = |instance: &Value, key: &str| instance[key].as_str().unwrap().to_owned();
    let all = told.as_array().unwrap().iter();
    all.map(|one| Instance {
        id: text(one, "id"),
        state: text(one, "state"),
        user_data: text(one, "user_data"),
        purpose: text(one, "purpose"),
    })
    .collect()
}

#[derive(Clone)]
struct Hypervisor {
    moto: Arc<Moto>,
    network: Arc<Network>,
    endpoint: String,
    machines: Arc<Mutex<BTreeMap<String, Machine>>>,
    disks: PathBuf,
}

impl Hypervisor {
    fn look(&self) {
        for instance in instances(&self.moto) {
            let mut machines = self.machines.lock().unwrap();
            let number = machines.len();
            match instance.state.as_str() {
                "running" => {
                    let machine = machines.entry(instance.id.clone()).or_insert_with(|| Machine {
                        number,
                        disk: self.disks.join(&instance.id),
                        agent: None,
                        boots: 0,
                    });
                    self.keep_running(machine, &instance);
                }
                "stopped" | "terminated" => {
                    if let Some(machine) = machines.get_mut(&instance.id)
                        && machine.agent.is_some()
                    {
                        self.network.power_off(machine.number);
                        machine.agent = None;
                    }
                }
                _ => {}
            }
        }
    }

    fn keep_running(&self, machine: &mut Machine, instance: &Instance) {
        match machine.agent.as_mut().map(TestProcess::is_running) {
            Some(true) => {}
            // systemd: Restart=always.
            Some(false) => machine.agent = Some(self.start_unit(machine)),
            None => {
                self.network.plug_in(machine.number);
                machine.boots += 1;
                cloud_init(&machine.disk, &instance.user_data);
                machine.agent = Some(self.start_unit(machine));
            }
        }
    }

    /// Starts what the unit says, with this build in place of the image's binary and the machine's disk in place of `/`.
    fn start_unit(&self, machine: &Machine) -> TestProcess {
        let line = UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/envforge ")).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.network.namespace(machine.number), env!("CARGO_BIN_EXE_envforge")]);
        for word in line.split(' ') {
            match word.strip_prefix('/') {
                Some(path) => command.arg(machine.disk.join(path)),
                None => command.arg(word),
            };
        }
        command.args(["--log-format", "text"]).envs(environment(&self.endpoint));
        command.env_remove("ENVFORGE_CONTROL_PLANE");
        TestProcess::spawn("agent", &command, &machine.disk)
    }
}

/// Writes the files that user data names, once, and sees that it starts the unit.
fn cloud_init(disk: &Path, user_data: &str) {
    let mut lines = user_data.lines().peekable();
    assert_eq!(lines.next(), Some("#cloud-config"));
    assert!(user_data.ends_with("runcmd:\n  - [systemctl, enable, --now, envforge-agent.service]\n"), "{user_data}");
    while let Some(line) = lines.next() {
        let Some(path) = line.trim().strip_prefix("- path: /") else { continue };
        let body = lines.by_ref().skip_while(|line| line.trim() != "content: |").skip(1);
        let body: Vec<_> = body.take_while(|line| line.starts_with("      ")).map(str::trim_start).collect();
        let file = disk.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, body.join("\n")).unwrap();
    }
    std::fs::create_dir_all(disk.join("var/lib")).unwrap();
}
