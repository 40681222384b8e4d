//! Removes addresses, on a thread of its own: who changes one waits for the kernel's lock on the
//! network configuration, and a driver that resets its card may hold that for seconds. It is then
//! that the lease is lost, and that the guard has to freeze services and to feed the watchdog.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread;

use super::table::ADDRESSES_MAX;
use crate::netlink::Place;

/// Enough for a request and its answer; all of it is locked in memory.
const STACK_BYTES: usize = 256 * 1024;

/// What is under way for a row of the table.
#[derive(Default)]
enum Order {
    #[default]
    None,
    Open(Place),
    Begun,
    Done(Place, io::Result<bool>),
}

struct Desk {
    orders: Mutex<[Order; ADDRESSES_MAX]>,
    bell: Condvar,
}

/// Where orders are left. Nothing here allocates or waits.
pub struct Remover {
    desk: Arc<Desk>,
}

impl Remover {
    /// Starts the thread, which calls `begin` once and then `remove` for each order: whether the
    /// address was there.
    pub fn start(
        begin: impl FnOnce() + Send + 'static,
        mut remove: impl FnMut(&Place) -> io::Result<bool> + Send + 'static,
    ) -> io::Result<Self> {
        let orders = Mutex::new([const { Order::None }; ADDRESSES_MAX]);
        let desk = Arc::new(Desk { orders, bell: Condvar::new() });
        let theirs = desk.clone();
        let body = move || {
            begin();
            loop {
                let (row, place) = theirs.take();
                let result = remove(&place);
                theirs.orders.lock().unwrap_or_else(PoisonError::into_inner)[row] =
                    Order::Done(place, result);
            }
        };
        thread::Builder::new().name("addresses".into()).stack_size(STACK_BYTES).spawn(body)?;
        Ok(Self { desk })
    }

    /// Has the address of a row removed. Asked again and again: `None` until that is done, then
    /// once whether it was there.
    pub fn remove(&self, row: usize, place: &Place) -> io::Result<Option<bool>> {
        let mut orders = match self.desk.orders.try_lock() {
            Ok(orders) => orders,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // The thread takes or leaves something at this moment.
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        match std::mem::take(&mut orders[row]) {
            Order::Done(of, result) if of == *place => result.map(Some),
            // Of an address that was in this row before.
            Order::Done(..) | Order::None | Order::Open(_) => {
                orders[row] = Order::Open(*place);
                self.desk.bell.notify_one();
                Ok(None)
            }
            begun @ Order::Begun => {
                orders[row] = begun;
                Ok(None)
            }
        }
    }
}

impl Desk {
    /// The next order; waits for it.
    fn take(&self) -> (usize, Place) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let open = orders.iter_mut().enumerate().find_map(|(row, order)| match order {
                Order::Open(place) => Some((row, *place)),
                _ => None,
            });
            if let Some((row, place)) = open {
                orders[row] = Order::Begun;
                return (row, place);
            }
            orders = self.bell.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    fn place(last: u8) -> Place {
        Place { index: 3, address: [192, 0, 2, last].into(), prefix: 24 }
    }

    fn wait_for(remover: &Remover, row: usize, place: &Place) -> io::Result<bool> {
        let began = Instant::now();
        loop {
            match remover.remove(row, place).transpose() {
                Some(result) => return result,
                None => assert!(began.elapsed() < Duration::from_secs(20), "it is not removed"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_orders_does_not_wait_for_the_kernel() {
        let (answer, answers) = mpsc::channel::<io::Result<bool>>();
        let remover = Remover::start(|| {}, move |_| answers.recv().unwrap()).unwrap();
        for _ in 0..100 {
            assert_eq!(remover.remove(0, &place(1)).unwrap(), None);
        }
        answer.send(Ok(true)).unwrap();
        assert!(wait_for(&remover, 0, &place(1)).unwrap());
        answer.send(Err(io::ErrorKind::PermissionDenied.into())).unwrap();
        assert!(wait_for(&remover, 0, &place(1)).is_err());
    }

    #[test]
    fn an_answer_about_another_address_of_the_row_is_not_taken_for_this_ones() {
        let (answer, answers) = mpsc::channel::<bool>();
        let (asked, questions) = mpsc::channel();
        let remover = Remover::start(
            || {},
            move |place| {
                asked.send(*place).unwrap();
                Ok(answers.recv().unwrap())
            },
        );
        let remover = remover.unwrap();
        assert_eq!(remover.remove(7, &place(1)).unwrap(), None);
        assert_eq!(questions.recv().unwrap(), place(1));
        assert_eq!(remover.remove(7, &place(2)).unwrap(), None);
        answer.send(true).unwrap();
        answer.send(false).unwrap();
        assert!(!wait_for(&remover, 7, &place(2)).unwrap());
        assert_eq!(questions.recv().unwrap(), place(2));
    }
}
