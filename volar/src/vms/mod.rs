//! `volar vms`. A command for several VMs is done for all of them at once, and each failure is told.

mod config;
mod console;
mod cp;
mod create;
mod exec;
mod forward;
mod logs;
mod stats;
mod wait;

use std::rc::Rc;

use futures_util::{StreamExt, stream};
use serde_json::Value;
use volant_spec::Name;

pub use cp::{PackError, UnpackError};

use crate::{
    Failures,
    args::{Create, Names, Vms, Wait},
    client::{Change, Client},
    ended,
    failure::Failure,
    output::Output,
    plugins::unsigned,
    view::{self, Vm},
    waiting,
};

/// Requests at the same time.
const AT_ONCE: usize = 16;

/// Gives the exit code.
pub async fn run(command: Vms, client: Client, output: &Output) -> Result<u8, Failures> {
    match command {
        Vms::Exec(exec) => exec::exec(exec, &client, output).await.map_err(Into::into),
        Vms::Shell(shell) => exec::shell(shell, &client, output)
            .await
            .map_err(Into::into),
        Vms::Console(console) => Ok(console::attach(console, &client, output).await?),
        Vms::Forward(forward) => {
            forward::forward(forward, Rc::new(client), output).await?;
            Ok(0)
        }
        command => act(command, &client, output).await.map(|()| 0),
    }
}

async fn act(command: Vms, client: &Client, output: &Output) -> Result<(), Failures> {
    match command {
        Vms::Create(create) => Ok(self::create(*create, client, output).await?),
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
        Vms::Pause(names) => change(names, Change::Pause, client, output).await,
        Vms::Resume(names) => change(names, Change::Resume, client, output).await,
        Vms::Reload(names) => change(names, Change::Reload, client, output).await,
        Vms::Delete(Names { names }) => delete(&names, client, output).await,
        Vms::Cp(copy) => Ok(cp::copy(&copy, client, output).await?),
        Vms::Logs(logs) => Ok(logs::logs(logs, client, output).await?),
        Vms::Events(events) => Ok(logs::events(&events, client, output).await?),
        Vms::Stats(stats) => stats::stats(stats, client, output).await,
        Vms::Top(top) => stats::top(top, client, output).await,
        Vms::Wait(wait) => self::wait(&wait, client, output).await,
        Vms::Scale(scale) => Ok(config::scale(&scale, client, output).await?),
        Vms::Config(config) => Ok(config::run(config, client, output).await?),
        Vms::Secret(secrets) => Ok(config::secrets(secrets, client, output).await?),
        // These end with a code of their own.
        Vms::Exec(_) | Vms::Shell(_) | Vms::Console(_) | Vms::Forward(_) => Ok(()),
    }
}

async fn create(create: Create, client: &Client, output: &Output) -> Result<(), Failure> {
    let vm = create::request(create)?;
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
        Change::Pause => "Pausing",
        Change::Resume => "Resuming",
        Change::Reload => "Reloading",
    };
    let spinner = waiting::spinner(output, format!("{act} {}", shown(&names)));
    let done = all(&names, async |name| client.change_vm(name, change).await).await;
    spinner.finish_and_clear();
    show(done, output, |output, vm| {
        output.done(&match change {
            Change::Start
            | Change::Stop
            | Change::Restart
            | Change::Pause
            | Change::Resume
            | Change::Reload => vm.sentence(),
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

async fn wait(wait: &Wait, client: &Client, output: &Output) -> Result<(), Failures> {
    let (names, until) = (&wait.names, wait.until.word());
    let message = format!("Waiting until {} is {until}", shown(names));
    let spinner = waiting::spinner(output, message);
    // All at once, however many: one that never comes holds up no other.
    let done = stream::iter(names)
        .map(|name| wait::wait(name, wait, client))
        .buffered(names.len())
        .collect()
        .await;
    spinner.finish_and_clear();
    show(done, output, |output, vm| {
        output.done(&format!("VM {} is {until}", vm.name))
    })
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

/// In JSON: what was asked of one is an object, and else a list.
fn unless_one(answers: &[Value], names: &[Name], output: &Output) -> Result<(), Failure> {
    match answers.first().filter(|_| names.len() == 1) {
        Some(answer) => output.json(answer),
        None => output.json(&answers),
    }
}

fn shown(names: &[Name]) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    format!("VM {}", names.join(", "))
}
