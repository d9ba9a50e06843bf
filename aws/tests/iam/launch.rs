//! Launches, judged by the policy of the control plane: what `Ec2` sends is allowed, and with one thing of it otherwise it is not.
//!
//! What it sends is `golden/run_instances.json`, which the tests against moto hold against what really is sent. IAM asks once for each
//! kind of thing that a launch touches ("Actions, resources, and condition keys for Amazon EC2").

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::evaluator::{Asked, Decision, evaluate};
use super::modules::{ACCOUNT, DEPLOYMENT, IMAGE, ORGANIZATION, SECURITY_GROUP, SUBNET, document, ec2};

type Form = BTreeMap<String, String>;

fn sent() -> Form {
    let golden: Map<String, Value> = serde_json::from_str(include_str!("golden/run_instances.json")).unwrap();
    golden.into_iter().map(|(key, value)| (key, value.as_str().unwrap().to_owned())).collect()
}

/// The tags that a launch gives to instances or to volumes.
fn tagged(form: &Form, kind: &str, mut asked: Asked) -> Asked {
    for (key, of) in form.iter().filter(|(key, _)| key.ends_with(".ResourceType")) {
        let specification = key.trim_end_matches(".ResourceType");
        for number in (1..).take_while(|_| of == kind) {
            let tag = |part: &str| form.get(&format!("{specification}.Tag.{number}.{part}"));
            let (Some(name), Some(value)) = (tag("Key"), tag("Value")) else { break };
            asked = asked.with(&format!("aws:RequestTag/{name}"), value);
        }
    }
    asked
}

/// Everything that IAM is asked for one launch.
fn launch(form: &Form) -> Vec<Asked> {
    let of = |key: &str| form.get(key).map_or("", String::as_str);
    let with = |asked: Asked, key: &str, from: &str| match form.get(from) {
        Some(value) => asked.with(key, value),
        None => asked,
    };
    let profile = of("IamInstanceProfile.Name");
    let mut instance = Asked::new("ec2:RunInstances", &ec2("instance/i-new"));
    instance = with(instance, "ec2:MetadataHttpTokens", "MetadataOptions.HttpTokens");
    instance = with(instance, "ec2:MetadataHttpPutResponseHopLimit", "MetadataOptions.HttpPutResponseHopLimit");
    instance = instance.with("ec2:InstanceProfile", &format!("arn:aws:iam::{ACCOUNT}:instance-profile/{profile}"));
    let mut volume = Asked::new("ec2:RunInstances", &ec2("volume/vol-new"));
    volume = with(volume, "ec2:Encrypted", "BlockDeviceMapping.1.Ebs.Encrypted");
    let used = [
        format!("subnet/{}", of("SubnetId")),
        format!("security-group/{}", of("SecurityGroupId.1")),
        format!("image/{}", of("ImageId")),
        "network-interface/eni-new".to_owned(),
    ];
    let tags = ["instance/i-new", "volume/vol-new"].map(|made| {
        let asked = Asked::new("ec2:CreateTags", &ec2(made)).with("ec2:CreateAction", "RunInstances");
        tagged(form, made.split('/').next().unwrap(), asked)
    });
    // The module gives role and profile one name.
    let role = Asked::new("iam:PassRole", &format!("arn:aws:iam::{ACCOUNT}:role/{profile}"));
    let asked = [tagged(form, "instance", instance), tagged(form, "volume", volume)].into_iter();
    let asked = asked.chain(used.iter().map(|thing| Asked::new("ec2:RunInstances", &ec2(thing)))).chain(tags);
    asked.chain([role.with("iam:PassedToService", "ec2.amazonaws.com")]).collect()
}

#[test]
fn a_launch_is_allowed_as_it_is_sent_and_refused_with_one_thing_of_it_otherwise() {
    let policy = document("control-plane", "control_plane");
    let refused = |form: &Form| {
        let asked = launch(form).into_iter();
        let refused = asked.filter(|asked| evaluate(&[&policy], asked) != Decision::Allowed);
        refused.map(|asked| asked.to_string()).collect::<Vec<String>>()
    };
    let sent = sent();
    let (image, profile) = (sent["ImageId"].clone(), sent["IamInstanceProfile.Name"].clone());
    assert_eq!((image.as_str(), profile), (IMAGE, format!("envforge-{DEPLOYMENT}-{ORGANIZATION}")));
    assert_eq!((sent["SubnetId"].as_str(), sent["SecurityGroupId.1"].as_str()), (SUBNET, SECURITY_GROUP));
    let all = refused(&sent);
    assert!(all.is_empty(), "{all:#?}");
    let deployment_tag = |of: &str| {
        let specification = sent.iter().find(|(key, kind)| key.ends_with(".ResourceType") && *kind == of).unwrap().0;
        let specification = specification.trim_end_matches("ResourceType");
        let is_its =
            |(key, name): &(&String, &String)| key.starts_with(specification) && *name == "envforge:deployment";
        sent.iter().find(is_its).unwrap().0.replace(".Key", ".Value")
    };
    let (of_instance, of_volume) = (deployment_tag("instance"), deployment_tag("volume"));
    let foreign = format!("envforge-other-{ORGANIZATION}");
    let foreign = foreign.as_str();
    // What is changed, to what (nothing: it is left out), and of what the launch is refused.
    for (key, value, of) in [
        (of_instance.as_str(), Some("other"), "instance/i-new"),
        (&of_instance, None, "instance/i-new"),
        (&of_volume, Some("other"), "volume/vol-new"),
        (&of_volume, None, "volume/vol-new"),
        ("MetadataOptions.HttpTokens", Some("optional"), "instance/i-new"),
        ("MetadataOptions.HttpTokens", None, "instance/i-new"),
        ("MetadataOptions.HttpPutResponseHopLimit", Some("2"), "instance/i-new"),
        ("MetadataOptions.HttpPutResponseHopLimit", None, "instance/i-new"),
        ("BlockDeviceMapping.1.Ebs.Encrypted", Some("false"), "volume/vol-new"),
        ("BlockDeviceMapping.1.Ebs.Encrypted", None, "volume/vol-new"),
        ("IamInstanceProfile.Name", Some("admin"), "instance/i-new"),
        ("IamInstanceProfile.Name", Some(foreign), "instance/i-new"),
        ("IamInstanceProfile.Name", Some("admin"), "role/admin"),
        ("IamInstanceProfile.Name", Some(foreign), "role/"),
        ("SubnetId", Some("subnet-other"), "subnet/"),
        ("SecurityGroupId.1", Some("sg-other"), "security-group/"),
        ("ImageId", Some("ami-other"), "image/"),
    ] {
        let mut form = sent.clone();
        match value {
            Some(value) => assert!(form.insert(key.to_owned(), value.to_owned()).is_some(), "{key} is not sent"),
            None => assert!(form.remove(key).is_some(), "{key} is not sent"),
        }
        let told = refused(&form);
        assert!(told.iter().any(|asked| asked.contains(of)), "{key} = {value:?}: refused is only {told:#?}");
    }
}

#[test]
fn tags_are_set_by_launches_alone_and_roles_go_to_machines_alone() {
    let policy = document("control-plane", "control_plane");
    let may = |asked: Asked| evaluate(&[&policy], &asked) == Decision::Allowed;
    let tag = || Asked::new("ec2:CreateTags", &ec2("instance/i-1")).with("aws:RequestTag/envforge:organization", "x");
    assert!(may(tag().with("ec2:CreateAction", "RunInstances")));
    assert!(!may(tag()) && !may(tag().with("ec2:CreateAction", "CreateVolume")), "an instance changes no organization");
    assert!(!may(Asked::new("ec2:DeleteTags", &ec2("instance/i-1"))));
    let role = format!("arn:aws:iam::{ACCOUNT}:role/envforge-{DEPLOYMENT}-{ORGANIZATION}");
    let pass = |service: &str| Asked::new("iam:PassRole", &role).with("iam:PassedToService", service);
    assert!(may(pass("ec2.amazonaws.com")) && !may(pass("lambda.amazonaws.com")));
    assert!(!may(Asked::new("iam:PassRole", &role)));
}

#[test]
fn machines_are_touched_by_the_deployments_tag_and_looked_at_wherever_they_are() {
    let policy = document("control-plane", "control_plane");
    let may = |asked: Asked| evaluate(&[&policy], &asked) == Decision::Allowed;
    for action in ["ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances"] {
        let on = |deployment: &str| {
            Asked::new(action, &ec2("instance/i-1")).with("aws:ResourceTag/envforge:deployment", deployment)
        };
        assert!(may(on(DEPLOYMENT)) && !may(on("other")), "{action}");
        assert!(!may(Asked::new(action, &ec2("instance/i-1"))), "{action} of what carries no tag");
    }
    for action in ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus"] {
        assert!(may(Asked::new(action, "*")), "{action}");
    }
    for action in ["ec2:ModifyInstanceMetadataOptions", "ec2:AssociateIamInstanceProfile", "ec2:GetConsoleOutput"] {
        assert!(!may(Asked::new(action, &ec2("instance/i-1"))), "{action}");
    }
}
