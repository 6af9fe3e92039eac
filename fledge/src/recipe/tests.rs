use super::*;

/// From the quick start, letter for letter.
const QUICK_START: &str = r#"[plugin]
name = "myapp"
strategy = "initramfs"

[[file_mappings]]
source = "./mybinary"
dest = "/usr/local/bin/mybinary"
mode = 0o755

[workload]
entrypoint = ["/usr/local/bin/mybinary"]
"#;

#[test]
fn the_quick_start_is_a_recipe() {
    let recipe = Recipe::parse(QUICK_START).unwrap();
    assert_eq!(recipe.plugin.name.as_str(), "myapp");
    assert_eq!(recipe.plugin.version.as_str(), "0.1.0");
    assert_eq!(recipe.mappings[0].mode, Some(Mode(0o755)));
    assert_eq!(
        recipe.workload.entrypoint.unwrap(),
        ["/usr/local/bin/mybinary"]
    );
    assert_eq!(recipe.root, Root::Initramfs(None));
    assert_eq!(recipe.resources, None);
}

#[test]
fn half_of_the_resources_is_enough() {
    let recipe = Recipe::parse(&format!("{QUICK_START}[resources]\nmemory_mb = 512")).unwrap();
    assert_eq!(recipe.resources, Some(Resources::new(1, 512).unwrap()));
}

/// From the quick start, letter for letter.
const FROM_AN_IMAGE: &str = r#"[plugin]
name = "myapp"
strategy = "oci_rootfs"

[oci_source]
image = "docker.io/library/nginx:alpine"
"#;

#[test]
fn the_quick_start_from_an_image_is_a_recipe() {
    let recipe = Recipe::parse(FROM_AN_IMAGE).unwrap();
    let Root::Disk(source, filesystem) = recipe.root else {
        panic!("no disk");
    };
    assert_eq!(
        source.origin,
        Origin::Image("docker.io/library/nginx:alpine".to_owned())
    );
    assert_eq!(filesystem, Filesystem::default());
    assert_eq!(filesystem.kind, FilesystemType::Squashfs);
    assert_eq!(recipe.workload, Workload::default());
}

#[test]
fn every_key_is_read() {
    let recipe = Recipe::parse(&format!(
        r##"{FROM_AN_IMAGE}platform = "linux/amd64"
[filesystem]
type = "ext4"
size_mb = 64
[base]
files = true
busybox = "./busybox"
[mappings]
"a.conf" = "/etc/a.conf"
[workload]
args = ["-x"]
env = {{ A = "b" }}
rlimits = {{ nofile = {{ soft = 1, hard = 2 }} }}
user = "www-data"
restart = "always"
[root_disk]
size_mb = 1024
[limits]
cpu_quota_percent = 150
[network]
ports = [{{ port = 80 }}]
[health_check]
type = "tcp"
port = 80
[cloud_init]
user_data = {{ path = "user.yaml" }}
[actions.reload]
method = "POST"
path = "/reload"
[labels]
team = "web"
"##
    ))
    .unwrap();
    assert_eq!(recipe.mappings.len(), 1);
    assert!(recipe.workload.health_check.is_some());
    assert_eq!(recipe.base.busybox, Busybox::Path("./busybox".into()));
    assert!(recipe.cloud_init.unwrap().user_data.is_some());
    assert_eq!(recipe.root_disk.unwrap().size_mb, 1024);
    assert_eq!(recipe.limits.cpu_quota_percent, Some(150));
    assert_eq!(recipe.workload.rlimits["nofile"].hard, Some(2));
}

#[test]
fn a_guest_with_an_init_of_its_own_needs_no_program() {
    let files = QUICK_START.split("[workload]").next().unwrap();
    let files = files.replace("\n[[file", "init = \"/sbin/init\"\n[[file");
    let recipe = Recipe::parse(&files).unwrap();
    assert_eq!(recipe.plugin.init.as_deref(), Some("/sbin/init"));
    assert_eq!(recipe.workload, Workload::default());
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    let image = |more: &str| format!("{FROM_AN_IMAGE}{more}");
    let cases = [
        (
            QUICK_START.replace("initramfs", "oci_rootfs"),
            "needs an [oci_source]",
        ),
        (
            format!("{QUICK_START}[filesystem]"),
            "an initramfs is no disk",
        ),
        (image("dockerfile = 'Dockerfile'"), "has both"),
        (
            image("target = 'x'"),
            "oci_source.target is for a dockerfile",
        ),
        (
            FROM_AN_IMAGE.replace("image =", "platform ="),
            "neither image nor dockerfile",
        ),
        (
            image("[filesystem]\nsize_mb = 7"),
            "filesystem.size_mb is for ext4",
        ),
        (
            image("[filesystem]\ntype = 'erofs'\ncompression_level = 7"),
            "is for squashfs",
        ),
        (image("[filesystem]\ncompression_level = 23"), "not 1 to 22"),
        (
            image("[filesystem]\ntype = 'ext4'\nsize_mb = 4000000"),
            "not 1 to 1048576",
        ),
        (image("[filesystem]\ntype = 'xfs'"), "unknown variant `xfs`"),
        (
            image(
                "[health_check]\ntype = 'tcp'\nport = 1\n[workload.health_check]\ntype = 'tcp'\nport = 1",
            ),
            "there twice",
        ),
        (
            QUICK_START.replace("[[file", "kernel = 'bzimage'\n[[file"),
            "use \"vmlinux\"",
        ),
        (
            QUICK_START.replace("entrypoint =", "args ="),
            "no [workload]",
        ),
        (
            format!("{QUICK_START}[root_disk]\nsize_mb = 64"),
            "root of an initramfs is in memory",
        ),
        (image("[root_disk]\nsize_mb = 1"), "size_mb 1"),
        (image("[limits]\ncpu_weight = 0"), "limits.cpu_weight 0"),
        (
            image("[workload.rlimits]\nfiles = {}"),
            "rlimits has 'files'",
        ),
        (
            FROM_AN_IMAGE.replace("[oci_source]", "init = \"init\"\n[oci_source]"),
            "init 'init'",
        ),
    ];
    for (text, expected) in cases {
        let error = Recipe::parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_mistake_is_named_with_its_line() {
    let cases = [
        (
            "name = \"myapp\"",
            "name = \"My/App\"",
            "line 2",
            "has 'M' in it",
        ),
        (
            "strategy = \"initramfs\"",
            "strategy = \"iso\"",
            "line 3",
            "unknown variant `iso`",
        ),
        (
            "mode = 0o755",
            "mood = 0o755",
            "line 8",
            "unknown field `mood`",
        ),
        ("mode = 0o755", "mode = 755", "line 8", "write 0o755"),
        (
            "mode = 0o755",
            "mode = 0o77777",
            "line 8",
            "more than 0o7777",
        ),
        ("mode = 0o755", "mode = -1", "line 8", "negative"),
        (
            "dest = \"/usr/local",
            "dest = \"usr/local",
            "line 7",
            "not an absolute path",
        ),
        (
            "dest = \"/usr/local",
            "dest = \"/usr/../local",
            "line 7",
            "has '..'",
        ),
        (
            "bin/mybinary\"\nmode",
            "bin/\"\nmode",
            "line 7",
            "ends with '/'",
        ),
        (
            "[workload]",
            "[worklaod]",
            "line 10",
            "unknown field `worklaod`",
        ),
        (
            "[workload]\n",
            "[resources]\ncpu_cores = 0\n[workload]\n",
            "line 10",
            "0 CPUs",
        ),
        (
            "[\"/usr/local/bin/mybinary\"]",
            "[]",
            "line 10",
            "names no program",
        ),
    ];
    for (from, to, line, expected) in cases {
        let error = Recipe::parse(&QUICK_START.replacen(from, to, 1))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(line) && error.contains(expected),
            "{to}: {error}"
        );
    }
}

#[test]
fn a_recipe_without_a_workload_is_refused() {
    let text = QUICK_START.split("[workload]").next().unwrap();
    assert!(matches!(Recipe::parse(text), Err(RecipeError::NoWorkload)));
}
