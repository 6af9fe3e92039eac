//! `volar vms`. A command for several VMs is done for all of them at once, and each failure is told.

use futures_util::{StreamExt, stream};
use serde_json::Value;
use volant_spec::Name;

use crate::{
    Failures,
    args::{Create, Names, Vms},
    client::{Change, Client, NewVm},
    ended,
    failure::Failure,
    output::Output,
    plugins::unsigned,
    view::{self, Vm},
    waiting,
};

/// Requests at the same time.
const AT_ONCE: usize = 16;

pub async fn run(command: Vms, client: &Client, output: &Output) -> Result<(), Failures> {
    match command {
        Vms::Create(create) => Ok(self::create(create, client, output).await?),
        Vms::List => Ok(list(client.vms().await?, output)?),
        Vms::Get(Names { names }) => {
            let done = all(&names, async |name| client.vm(name).await).await;
            let first = std::cell::Cell::new(true);
            show(done, output, |output, vm| {
                if !first.replace(false) {
                    output.text("")?;
                }
                output.facts(&vm.facts())
            })
        }
        Vms::Start(names) => change(names, Change::Start, client, output).await,
        Vms::Stop(names) => change(names, Change::Stop, client, output).await,
        Vms::Restart(names) => change(names, Change::Restart, client, output).await,
        Vms::Enable(names) => change(names, Change::Enable, client, output).await,
        Vms::Disable(names) => change(names, Change::Disable, client, output).await,
        Vms::Delete(Names { names }) => delete(&names, client, output).await,
    }
}

async fn create(create: Create, client: &Client, output: &Output) -> Result<(), Failure> {
    let vm = NewVm {
        name: create.name,
        plugin: create.plugin,
        cpu_cores: create.cpu,
        memory_mb: create.memory,
        vmm: create.vmm,
        start: !create.no_start,
        enable: create.enable,
    };
    let spinner = waiting::spinner(output, format!("Creating VM {}", vm.name));
    let created = client.create_vm(&vm).await;
    spinner.finish_and_clear();
    let created = created?;
    let shown: Vm = view::read(created.clone())?;
    unsigned::of_vm(&shown, client, output).await;
    if output.is_json() {
        return output.json(&created);
    }
    output.done(&shown.sentence())
}

fn list(answer: Value, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&answer);
    }
    let vms: Vec<Vm> = view::read(answer)?;
    if output.quiet {
        let names: Vec<String> = vms.into_iter().map(|vm| vm.name).collect();
        return output.names(&names);
    }
    if vms.is_empty() {
        return output.text("there are no VMs; volar vms create NAME --plugin PLUGIN");
    }
    output.table(Vm::COLUMNS, vms.iter().map(Vm::row).collect())
}

async fn change(
    Names { names }: Names,
    change: Change,
    client: &Client,
    output: &Output,
) -> Result<(), Failures> {
    let act = match change {
        Change::Start => "Starting",
        Change::Stop => "Stopping",
        Change::Restart => "Restarting",
        Change::Enable => "Enabling",
        Change::Disable => "Disabling",
    };
    let spinner = waiting::spinner(output, format!("{act} {}", shown(&names)));
    let done = all(&names, async |name| client.change_vm(name, change).await).await;
    spinner.finish_and_clear();
    show(done, output, |output, vm| {
        output.done(&match change {
            Change::Start | Change::Stop | Change::Restart => vm.sentence(),
            Change::Enable => format!("VM {} starts when the host boots", vm.name),
            Change::Disable => format!("VM {} does not start when the host boots", vm.name),
        })
    })
}

async fn delete(names: &[Name], client: &Client, output: &Output) -> Result<(), Failures> {
    let spinner = waiting::spinner(output, format!("Deleting {}", shown(names)));
    let done = all(names, async |name| client.delete_vm(name).await).await;
    spinner.finish_and_clear();
    let mut failures = Vec::new();
    for (name, done) in names.iter().zip(done) {
        if let Err(failure) = done.and_then(|()| output.done(&format!("VM {name} is deleted"))) {
            failures.push(failure);
        }
    }
    ended(failures)
}

/// Asks for each of the names; the answers are in the names' order.
async fn all<T>(
    names: &[Name],
    ask: impl AsyncFn(&Name) -> Result<T, Failure>,
) -> Vec<Result<T, Failure>> {
    let ask = &ask;
    stream::iter(names)
        .map(|name| async move { ask(name).await })
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// Shows what was answered. In JSON one VM is an object, and several are a list.
fn show(
    answers: Vec<Result<Value, Failure>>,
    output: &Output,
    for_people: impl Fn(&Output, &Vm) -> Result<(), Failure>,
) -> Result<(), Failures> {
    let one = answers.len() == 1;
    let (mut values, mut failures) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(value) => values.push(value),
            Err(failure) => failures.push(failure),
        }
    }
    if output.is_json() {
        match values.first().filter(|_| one) {
            Some(value) => output.json(value)?,
            None if one => {}
            None => output.json(&values)?,
        }
        return ended(failures);
    }
    for value in values {
        for_people(output, &view::read(value)?)?;
    }
    ended(failures)
}

fn shown(names: &[Name]) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    format!("VM {}", names.join(", "))
}
