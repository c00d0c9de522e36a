//! Which secondary gets the next job: the least loaded of those that can take one.

/// What dispatch knows of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Jobs given and not yet ended.
    pub open: u32,
    /// Whether the secondary is ready and not suspect.
    pub available: bool,
}

/// Why no slot was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSlot {
    /// No secondary is ready.
    NoneReady,
    /// Every ready secondary has as many jobs as it may have.
    AllFull,
    /// There is room, but not for who has so many jobs open already.
    OverShare,
}

/// Chooses slots; remembers whose turn it is among equals.
#[derive(Debug)]
pub struct Dispatch {
    loads: Vec<Load>,
    max_jobs: u32,
    turn: usize,
}

impl Dispatch {
    /// No slot is available yet; each may have up to `max_jobs` open jobs.
    #[must_use]
    pub fn new(slots: usize, max_jobs: u32) -> Self {
        Self { loads: vec![Load::default(); slots], max_jobs, turn: 0 }
    }

    /// The load of a slot (counted from 0), to look at.
    #[must_use]
    pub fn load(&self, slot: usize) -> Load {
        self.loads[slot]
    }

    /// The load of a slot, to change.
    pub fn load_mut(&mut self, slot: usize) -> &mut Load {
        &mut self.loads[slot]
    }

    /// Jobs open in all slots together.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.loads.iter().map(|load| u64::from(load.open)).sum()
    }

    /// Jobs that could be given now to all available slots together.
    #[must_use]
    pub fn room(&self) -> u64 {
        let available = self.loads.iter().filter(|load| load.available);
        available.map(|load| u64::from(self.max_jobs.saturating_sub(load.open))).sum()
    }

    /// As [`Dispatch::find`]; equals take turns.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn choose(&mut self) -> Result<usize, NoSlot> {
        let slot = self.find()?;
        self.turn = (slot + 1) % self.loads.len();
        Ok(slot)
    }

    /// The available slot with the fewest open jobs.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn find(&self) -> Result<usize, NoSlot> {
        let slots = self.loads.len();
        let mut best: Option<usize> = None;
        let mut any_available = false;
        for step in 0..slots {
            let slot = (self.turn + step) % slots;
            let load = self.loads[slot];
            any_available |= load.available;
            if !load.available || load.open >= self.max_jobs {
                continue;
            }
            if best.is_none_or(|best| load.open < self.loads[best].open) {
                best = Some(slot);
            }
        }
        best.ok_or(if any_available { NoSlot::AllFull } else { NoSlot::NoneReady })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equals_take_turns() {
        let mut dispatch = Dispatch::new(3, 10);
        for slot in 0..3 {
            dispatch.load_mut(slot).available = true;
        }
        let chosen: Vec<_> = (0..6).map(|_| dispatch.choose().unwrap()).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
    }

    proptest! {
        #[test]
        fn chooses_a_least_loaded_slot_that_may_be_chosen(
            loads in prop::collection::vec((0u32..5, any::<bool>()), 1..9),
            turn in 0usize..9,
        ) {
            let mut dispatch = Dispatch::new(loads.len(), 4);
            dispatch.turn = turn % loads.len();
            for (slot, &(open, available)) in loads.iter().enumerate() {
                *dispatch.load_mut(slot) = Load { open, available };
            }
            let least = loads.iter().filter(|load| load.1 && load.0 < 4).map(|load| load.0).min();
            match dispatch.choose() {
                Ok(slot) => {
                    prop_assert!(loads[slot].1);
                    prop_assert_eq!(Some(loads[slot].0), least);
                }
                Err(NoSlot::AllFull) => prop_assert!(least.is_none() && loads.iter().any(|load| load.1)),
                Err(NoSlot::OverShare) => prop_assert!(false, "here is nobody who could have too much"),
                Err(NoSlot::NoneReady) => prop_assert!(loads.iter().all(|load| !load.1)),
            }
        }
    }
}
