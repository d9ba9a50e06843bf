//! A cloud of this machine: moto for the API, and for each instance that it shows as running a network namespace, in which what
//! cloud-init and systemd would do (`boot`) is done with nothing but the user data of the launch and the unit of the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envforge_testkit::{Moto, TestProcess};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::boot;
use super::network::Network;

const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Ends with everything in it on drop.
pub(crate) struct Cloud {
    pub(crate) moto: Arc<Moto>,
    network: Arc<Network>,
    endpoint: String,
    machines: Arc<Mutex<BTreeMap<String, Machine>>>,
    looking: tokio::task::JoinHandle<()>,
}

/// An instance's machine. Its disk stays while it is off.
struct Machine {
    number: usize,
    disk: PathBuf,
    agent: Option<TestProcess>,
    boots: u32,
}

impl Cloud {
    pub(crate) async fn new(disks: &Path) -> Self {
        let network = Arc::new(Network::new(disks));
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

    /// Whether a user of an instance's machine reaches the metadata service.
    pub(crate) fn reaches_metadata(&self, instance: &str, uid: u32) -> bool {
        self.network.reaches_metadata(self.machines.lock().unwrap()[instance].number, uid)
    }

    /// As something does that sets up the machine's network anew.
    pub(crate) fn without_rules(&self, instance: &str) {
        self.network.without_rules(self.machines.lock().unwrap()[instance].number);
    }

    /// Whether nothing of an instance runs any more.
    pub(crate) fn is_off(&self, instance: &str) -> bool {
        self.machines.lock().unwrap()[instance].agent.is_none()
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
    }
}

struct Instance {
    id: String,
    state: String,
    user_data: String,
}

fn instances(moto: &Moto) -> Vec<Instance> {
    let told: Value = serde_json::from_str(&moto.pull("instances", "{}")).unwrap();
    let text = |instance: &Value, key: &str| instance[key].as_str().unwrap().to_owned();
    let all = told.as_array().unwrap().iter();
    all.map(|one| Instance { id: text(one, "id"), state: text(one, "state"), user_data: text(one, "user_data") })
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
                boot::cloud_init(&machine.disk, &instance.user_data);
                machine.agent = Some(self.start_unit(machine));
            }
        }
    }

    fn start_unit(&self, machine: &Machine) -> TestProcess {
        let mut command = boot::unit(&machine.disk, &self.network.namespace(machine.number));
        command.envs(environment(&self.endpoint));
        TestProcess::spawn("agent", &command, &machine.disk)
    }
}
