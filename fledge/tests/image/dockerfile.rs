//! Images from a Dockerfile, built by buildah.

use std::{fs, process::Stdio};

use crate::work::{BUSYBOX, Work, eventually, program};

const RECIPE: &str = "[plugin]\nname = \"app\"\nstrategy = \"oci_rootfs\"\n[oci_source]\ndockerfile = \"Dockerfile\"\n";

fn work(arguments: &str, steps: &str) -> Work {
    let work = Work::new(&format!("{RECIPE}build_args = {{ {arguments} }}\n"));
    work.write(
        "Dockerfile",
        &format!("FROM scratch\nARG TOKEN\nARG LANG\nCOPY busybox /bin/\n{steps}\nENTRYPOINT [\"/bin/busybox\"]\n"),
    );
    fs::copy(BUSYBOX, work.path("busybox")).unwrap();
    work
}

#[test]
fn a_dockerfile_gives_the_same_image_twice() {
    let steps = "RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo $TOKEN $LANG > /told\"]";
    let results = ["first", "second"].map(|_| {
        let work = work("TOKEN = \"a b=c\", LANG = \"x\"", steps);
        work.build();
        assert_eq!(
            fs::read_to_string(work.unpacked().join("told")).unwrap(),
            "a b=c x\n"
        );
        ["out/app.squashfs", "out/app.manifest.json"].map(|name| fs::read(work.path(name)).unwrap())
    });
    assert!(results[0] == results[1]);
}

/// The command lines of all processes.
fn commands() -> Vec<String> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}

#[test]
fn an_interrupted_dockerfile_leaves_nothing_and_shows_no_argument() {
    // Both are of this run alone.
    let (seconds, token) = (
        format!("9{}", std::process::id()),
        format!("token-{}-of-this-test", std::process::id()),
    );
    let steps = format!("RUN [\"/bin/busybox\", \"sleep\", \"{seconds}\"]");
    let work = work(&format!("TOKEN = \"{token}\""), &steps);
    let sleeping = format!("/bin/busybox sleep {seconds} ");
    let is_asleep = || commands().contains(&sleeping);
    let build = work
        .command(&program())
        .args(["build", "-o", "out"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the step runs", is_asleep);
    let seen: Vec<String> = commands()
        .into_iter()
        .filter(|line| line.contains(&token))
        .collect();
    assert!(seen.is_empty(), "{seen:?}");
    work.assert_interrupted(build);
    eventually("the step has ended", || !is_asleep());
}
