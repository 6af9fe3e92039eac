//! Devices lent and given back, on a tree of files that behaves as the kernel's: what is written to `driver_override`, `unbind`,
//! `bind` and `drivers_probe` changes links, or is refused with the kernel's errors. It stands for an IOMMU and for devices,
//! which the machines that run this do not have.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    rc::Rc,
};

use deviced::{
    ledger::Ledger,
    lend::{LendError, Lender, Wish},
    sysfs::{Attributes, Sysfs},
};
use nix::errno::Errno;
use tempfile::TempDir;

/// The kernel's side of the tree.
#[derive(Clone, Debug)]
struct FakeKernel {
    root: PathBuf,
    /// Which kinds (`0x10de`) which drivers take by themselves.
    takes: Rc<BTreeMap<String, String>>,
    /// `driver ADDRESS`: refuses that device.
    stubborn: Rc<RefCell<Vec<String>>>,
    writes: Rc<RefCell<Vec<String>>>,
}

impl FakeKernel {
    fn device(&self, address: &str) -> PathBuf {
        self.root.join("bus/pci/devices").join(address)
    }

    fn attach(&self, address: &str, driver: &str) -> io::Result<()> {
        let link = self.device(address).join("driver");
        if link.exists() {
            return Err(Errno::EBUSY.into());
        }
        if self
            .stubborn
            .borrow()
            .contains(&format!("{driver} {address}"))
        {
            return Err(Errno::EINVAL.into());
        }
        let over = fs::read_to_string(self.device(address).join("driver_override"))?;
        let over = over.trim();
        let kind = fs::read_to_string(self.device(address).join("vendor"))?;
        let fits = match over {
            "" | "(null)" => self
                .takes
                .get(kind.trim())
                .is_some_and(|takes| takes == driver),
            over => over == driver,
        };
        if !fits {
            return Err(Errno::ENODEV.into());
        }
        symlink(self.root.join("bus/pci/drivers").join(driver), link)
    }
}

impl Attributes for FakeKernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let relative = path.strip_prefix(&self.root).expect("a path of the tree");
        let told = format!("{} {}", relative.display(), text.trim());
        self.writes.borrow_mut().push(told);
        if !path.exists() {
            return Err(Errno::ENOENT.into());
        }
        let parts: Vec<_> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        match parts[..] {
            ["bus", "pci", "devices", _, "driver_override"] => fs::write(path, text),
            ["bus", "pci", "drivers_probe"] => {
                if !self.device(text).exists() {
                    return Err(Errno::ENODEV.into());
                }
                // As the kernel does: all drivers are asked, and it is no error when none takes it.
                for driver in fs::read_dir(self.root.join("bus/pci/drivers"))? {
                    let driver = driver?.file_name().into_string().unwrap();
                    if self.attach(text, &driver).is_ok() {
                        break;
                    }
                }
                Ok(())
            }
            ["bus", "pci", "drivers", driver, "unbind"] => {
                let link = self.device(text).join("driver");
                let bound = fs::read_link(&link).ok();
                match bound.and_then(|bound| Some(bound.file_name()?.to_owned())) {
                    Some(bound) if bound == *driver => fs::remove_file(link),
                    _ => Err(Errno::ENODEV.into()),
                }
            }
            ["bus", "pci", "drivers", driver, "bind"] => self.attach(text, driver),
            _ => Err(Errno::EACCES.into()),
        }
    }
}

const GPU: &str = "0000:01:00.0";
const SOUND: &str = "0000:01:00.1";
const NET: &str = "0000:02:00.0";

struct World {
    kernel: FakeKernel,
    lender: Lender<FakeKernel>,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let root = folder.path().join("sys");
        for driver in ["nvidia", "e1000e", "vfio-pci"] {
            let path = root.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&path).unwrap();
            for file in ["bind", "unbind", "new_id"] {
                fs::write(path.join(file), "").unwrap();
            }
        }
        fs::write(root.join("bus/pci/drivers_probe"), "").unwrap();
        let devices = [
            ("0000:00:01.0", "0x8086", "0x060400", 1, None),
            (GPU, "0x10de", "0x030000", 1, Some("nvidia")),
            (SOUND, "0x10df", "0x040300", 1, None),
            (NET, "0x8086", "0x020000", 2, Some("e1000e")),
        ];
        for (address, vendor, class, group, driver) in devices {
            let path = root.join("bus/pci/devices").join(address);
            fs::create_dir_all(&path).unwrap();
            let files = [
                ("vendor", vendor),
                ("device", "0x2204"),
                ("class", class),
                ("driver_override", "(null)"),
                ("numa_node", "-1"),
            ];
            for (file, text) in files {
                fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
            let groups = root.join("kernel/iommu_groups").join(group.to_string());
            fs::create_dir_all(&groups).unwrap();
            symlink(groups, path.join("iommu_group")).unwrap();
            if let Some(driver) = driver {
                symlink(
                    root.join("bus/pci/drivers").join(driver),
                    path.join("driver"),
                )
                .unwrap();
            }
        }
        let dev = folder.path().join("dev");
        fs::create_dir_all(dev.join("vfio")).unwrap();
        for group in ["1", "2"] {
            fs::write(dev.join("vfio").join(group), "").unwrap();
        }
        let takes = [("0x10de", "nvidia"), ("0x8086", "e1000e")];
        let takes = takes.map(|(kind, driver)| (kind.to_owned(), driver.to_owned()));
        let kernel = FakeKernel {
            root: root.clone(),
            takes: Rc::new(takes.into()),
            stubborn: Rc::default(),
            writes: Rc::default(),
        };
        let lender = Lender {
            sysfs: Sysfs::with(root, kernel.clone()),
            ledger: Ledger::at(folder.path().join("ledger")),
            dev,
            allowed: vec![
                "10de:*".parse().unwrap(),
                "10df:*".parse().unwrap(),
                NET.parse().unwrap(),
            ],
            lock: folder.path().join("lock"),
        };
        Self {
            kernel,
            lender,
            folder,
        }
    }

    fn lend(&self, vm: &str, devices: &[&str]) -> Result<(), LendError> {
        self.lender.lend(&Wish {
            vm: vm.parse().unwrap(),
            // The test's own user: to give a file to another takes root.
            uid: nix::unistd::getuid().as_raw(),
            devices: devices.iter().map(|text| text.parse().unwrap()).collect(),
            allowlist: Vec::new(),
        })
    }

    fn give_back(&self, vm: &str) -> Result<(), LendError> {
        self.lender.give_back(&vm.parse().unwrap())
    }

    /// The driver, and what `driver_override` has.
    fn state(&self, address: &str) -> (String, String) {
        let path = self.kernel.device(address);
        let driver = fs::read_link(path.join("driver")).ok();
        let driver = driver.map(|link| link.file_name().unwrap().to_str().unwrap().to_owned());
        let over = fs::read_to_string(path.join("driver_override")).unwrap();
        (
            driver.unwrap_or_default(),
            over.trim().replace("(null)", ""),
        )
    }

    fn all(&self) -> Vec<(String, String)> {
        [GPU, SOUND, NET].map(|address| self.state(address)).into()
    }
}

fn as_root() -> bool {
    let root = nix::unistd::getuid().is_root();
    if !root {
        eprintln!("NOT RUN: giving device nodes back to root takes root");
    }
    root
}

fn state(driver: &str, over: &str) -> (String, String) {
    (driver.to_owned(), over.to_owned())
}

#[test]
fn a_group_is_lent_and_each_device_goes_back_to_what_it_had() {
    if !as_root() {
        return;
    }
    let world = World::new();
    let before = world.all();
    world.lend("web", &[GPU, SOUND]).unwrap();
    let vfio = || state("vfio-pci", "vfio-pci");
    assert_eq!(world.all(), [vfio(), vfio(), state("e1000e", "")]);
    let node = fs::metadata(world.folder.path().join("dev/vfio/1")).unwrap();
    assert_eq!(node.mode() & 0o777, 0o600);
    assert!(
        !world
            .kernel
            .writes
            .borrow()
            .iter()
            .any(|write| write.contains("new_id")),
        "every device of that kind would be taken"
    );
    world.give_back("web").unwrap();
    assert_eq!(world.all(), before);
    world.give_back("web").unwrap();
}

#[test]
fn a_refusal_touches_nothing() {
    let world = World::new();
    let before = world.all();
    let error = world.lend("web", &[GPU]).unwrap_err().to_string();
    assert!(
        error.contains("shares IOMMU group 1 with 0000:01:00.1"),
        "{error}"
    );
    fs::remove_dir_all(world.kernel.root.join("kernel/iommu_groups")).unwrap();
    let error = world.lend("web", &[NET]).unwrap_err().to_string();
    assert!(error.contains("no IOMMU"), "{error}");
    assert_eq!(world.all(), before);
    assert_eq!(*world.kernel.writes.borrow(), [""; 0]);
    assert_eq!(world.lender.ledger.lent().unwrap().len(), 0);
}

#[test]
fn a_failure_in_the_middle_gives_all_back() {
    if !as_root() {
        return;
    }
    let world = World::new();
    let before = world.all();
    world
        .kernel
        .stubborn
        .borrow_mut()
        .push(format!("vfio-pci {SOUND}"));
    let error = world.lend("web", &[GPU, SOUND]).unwrap_err().to_string();
    assert!(
        error.contains("0000:01:00.1 did not go to the driver vfio-pci"),
        "{error}"
    );
    assert_eq!(world.all(), before);
    assert_eq!(world.lender.ledger.lent().unwrap().len(), 0);
}

#[test]
fn one_device_is_not_lent_twice_and_is_free_after() {
    if !as_root() {
        return;
    }
    let world = World::new();
    world.lend("db", &[NET]).unwrap();
    let error = world.lend("web", &[NET]).unwrap_err().to_string();
    assert!(error.contains("is lent to VM 'db'"), "{error}");
    // Again, as after a crash of the VM: the driver that it goes back to is not forgotten.
    world.lend("db", &[NET]).unwrap();
    world.give_back("db").unwrap();
    assert_eq!(world.state(NET), state("e1000e", ""));
    world.lend("web", &[NET]).unwrap();
}

#[test]
fn a_crash_in_the_middle_is_mended_by_the_next_giving_back() {
    if !as_root() {
        return;
    }
    let world = World::new();
    let before = world.all();
    world.lend("web", &[GPU, SOUND]).unwrap();
    // As if the program had been killed between two writes.
    fs::remove_file(world.kernel.device(SOUND).join("driver")).unwrap();
    world.give_back("web").unwrap();
    assert_eq!(world.all(), before);
}

#[test]
fn what_cannot_go_back_stays_written_down_and_the_rest_goes() {
    if !as_root() {
        return;
    }
    let world = World::new();
    world.lend("web", &[GPU, SOUND]).unwrap();
    world.lend("web", &[GPU, SOUND, NET]).unwrap();
    world
        .kernel
        .stubborn
        .borrow_mut()
        .push(format!("nvidia {GPU}"));
    let error = world.give_back("web").unwrap_err().to_string();
    assert!(error.contains("drivers/nvidia/bind"), "{error}");
    assert_eq!(world.state(NET), state("e1000e", ""));
    assert_eq!(world.lender.ledger.lent().unwrap().len(), 3);
    world.kernel.stubborn.borrow_mut().clear();
    world.give_back("web").unwrap();
    assert_eq!(world.state(GPU), state("nvidia", ""));
}
