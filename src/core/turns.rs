//! A queue that serves addresses in turn: whoever asks a thousand times waits behind himself,
//! not before others.

use std::collections::{HashMap, VecDeque};

use crate::core::crowd::Network;

/// Items in the order in which they came, by network; networks in the order of their turns.
#[derive(Debug)]
pub struct Turns<T> {
    /// A queue may be empty: it goes when its turn comes.
    queues: HashMap<Network, VecDeque<T>>,
    order: VecDeque<Network>,
    /// Networks whose turn was put off.
    aside: Vec<Network>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), order: VecDeque::new(), aside: Vec::new() }
    }
}

impl<T> Turns<T> {
    /// Queues an item.
    pub fn push(&mut self, network: Network, item: T) {
        let order = &mut self.order;
        let queue = self.queues.entry(network).or_insert_with(|| {
            order.push_back(network);
            VecDeque::new()
        });
        queue.push_back(item);
    }

    /// Queues an item before the others of its network.
    pub fn push_first(&mut self, network: Network, item: T) {
        self.push(network, item);
        if let Some(queue) = self.queues.get_mut(&network) {
            queue.rotate_right(1);
        }
    }

    /// The item whose turn it is.
    pub fn peek(&mut self) -> Option<&T> {
        while let Some(network) = self.order.front() {
            if self.queues.get(network).is_some_and(|queue| !queue.is_empty()) {
                break;
            }
            self.queues.remove(network);
            self.order.pop_front();
        }
        self.queues.get(self.order.front()?)?.front()
    }

    /// Takes the item whose turn it is; then it is the next network's turn.
    pub fn pop(&mut self) -> Option<T> {
        let item = self.discard()?;
        self.order.rotate_left(1);
        Some(item)
    }

    /// Takes the item whose turn it is; its network has another turn.
    pub fn discard(&mut self) -> Option<T> {
        self.peek()?;
        self.queues.get_mut(self.order.front()?)?.pop_front()
    }

    /// Puts off the turn of the network whose turn it is, until [`Turns::bring_back`].
    pub fn put_off(&mut self) {
        if self.peek().is_some() {
            self.aside.extend(self.order.pop_front());
        }
    }

    /// Those whose turn was put off come first again.
    pub fn bring_back(&mut self) {
        while let Some(network) = self.aside.pop() {
            self.order.push_front(network);
        }
    }

    /// Drops the oldest items of a network as long as they are to go.
    pub fn drop_while(&mut self, network: Network, goes: impl Fn(&T) -> bool) {
        if let Some(queue) = self.queues.get_mut(&network) {
            while queue.front().is_some_and(&goes) {
                queue.pop_front();
            }
        }
    }

    /// Drops an item of a network, wherever it stands. Returns whether it was there.
    pub fn remove(&mut self, network: Network, is_meant: impl Fn(&T) -> bool) -> bool {
        let Some(queue) = self.queues.get_mut(&network) else {
            return false;
        };
        let place = queue.iter().position(is_meant);
        place.and_then(|place| queue.remove(place)).is_some()
    }

    /// Keeps only these items.
    pub fn retain(&mut self, stays: impl Fn(&T) -> bool) {
        for queue in self.queues.values_mut() {
            queue.retain(&stays);
        }
    }

    /// Takes everything.
    pub fn drain(&mut self) -> Vec<T> {
        self.bring_back();
        std::iter::from_fn(|| self.pop()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn network(last: u8) -> Network {
        IpAddr::from([127, 0, 0, last]).into()
    }

    #[test]
    fn networks_take_turns_and_each_is_served_in_its_own_order() {
        let mut turns = Turns::default();
        for item in ["a1", "a2", "a3"] {
            turns.push(network(1), item);
        }
        turns.push(network(2), "b1");
        turns.push(network(3), "c1");
        turns.push(network(2), "b2");
        assert_eq!(turns.peek(), Some(&"a1"));
        assert_eq!(turns.drain(), ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert_eq!(turns.peek(), None);
    }

    #[test]
    fn who_left_has_no_turn() {
        let mut turns = Turns::default();
        for (of, item) in [(1, "a1"), (2, "b1"), (3, "c1"), (1, "a2"), (3, "c2")] {
            turns.push(network(of), item);
        }
        turns.retain(|item| !["a1", "b1", "c2"].contains(item));
        assert_eq!(turns.drain(), ["a2", "c1"]);
    }

    #[test]
    fn who_cannot_be_served_now_does_not_hold_up_the_others() {
        let mut turns = Turns::default();
        for (of, item) in [(1, "a1"), (2, "b1"), (3, "c1"), (1, "a2"), (3, "c2")] {
            turns.push(network(of), item);
        }
        turns.put_off();
        turns.put_off();
        assert_eq!((turns.pop(), turns.pop(), turns.pop()), (Some("c1"), Some("c2"), None));
        turns.put_off();
        turns.push(network(2), "b2");
        assert_eq!(turns.peek(), None, "its turn was put off");
        turns.bring_back();
        assert_eq!(turns.drain(), ["a1", "b1", "a2", "b2"]);
    }

    #[test]
    fn one_goes_from_the_middle_and_one_comes_back_to_the_front() {
        let mut turns = Turns::default();
        for item in 1..=3 {
            turns.push(network(1), item);
        }
        assert!(turns.remove(network(1), |&item| item == 2));
        assert!(!turns.remove(network(1), |&item| item == 2));
        assert!(!turns.remove(network(2), |_| true));
        turns.push_first(network(1), 9);
        turns.push_first(network(2), 8);
        assert_eq!(turns.drain(), [9, 8, 1, 3]);
    }

    #[test]
    fn who_has_waited_too_long_leaves_the_others_in_their_places() {
        let mut turns = Turns::default();
        for item in 1..=3 {
            turns.push(network(1), item);
        }
        turns.push(network(2), 9);
        turns.drop_while(network(1), |&item| item < 3);
        turns.drop_while(network(3), |_| true);
        assert_eq!(turns.peek(), Some(&3));
        turns.drop_while(network(1), |_| true);
        turns.push(network(1), 4);
        assert_eq!(turns.discard(), Some(4));
        assert_eq!(turns.drain(), [9]);
        assert!(turns.queues.is_empty() && turns.order.is_empty());
    }
}
