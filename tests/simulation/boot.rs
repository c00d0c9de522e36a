//! How a process of the program begins to run.

use osps::core::name::Role;

use crate::kernel::{Exit, Life};
use crate::machine::{Event, Machine, Memory, Proc};
use crate::observer::Observer;
use crate::principal::Principal;
use crate::secondary::Secondary;

impl Machine {
    /// A process of the program begins to run.
    pub fn boot(&mut self, proc: Proc) {
        if self.processes[proc].life != Life::Booting || self.memories[proc].is_some() {
            return;
        }
        if self.now < self.paused_until {
            self.at(self.paused_until, Event::Boot(proc));
            return;
        }
        let sheet = self.processes[proc].sheet.clone().expect("every child has one");
        if sheet.succeeds {
            self.prepare_heir(proc);
        } else {
            self.begin_role(proc);
        }
    }

    /// From here on it writes in its pages.
    pub fn begin_role(&mut self, proc: Proc) {
        let sheet = self.processes[proc].sheet.clone().expect("every child has one");
        let mut started = None;
        self.processes[proc].handlers = true;
        let lived = self.in_turn(proc, |sys| {
            started = match sheet.name.role {
                Role::Principal => {
                    Principal::start(sys, proc, sheet).map(|it| Memory::Principal(Box::new(it)))
                }
                Role::Observer => Some(Memory::Observer(Box::new(Observer::start(sys, proc, sheet)))),
                Role::Secondary => {
                    Secondary::start(sys, proc, sheet).map(|it| Memory::Secondary(Box::new(it)))
                }
            };
            if let Some(memory) = &mut started {
                memory.role().settle(sys);
            }
        });
        match (lived, started) {
            (true, None) => {
                self.audit.coverage.count("could not start without its parent");
                self.end(proc, Exit::Code(69));
            }
            (_, memory) => {
                self.plan_fault(proc);
                self.turn_is_over(proc, memory.filter(|_| lived));
            }
        }
    }
}
