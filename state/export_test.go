// SPDX-License-Identifier: Apache-2.0

package state

import bolt "go.etcd.io/bbolt"

// DecodeRecord is for the tests.
var DecodeRecord = decodeRecord

// Waiting is how many calls of Update wait for one that goes on.
func Waiting(s Store) int {
	b := s.(*boltStore)
	b.queue.Lock()
	defer b.queue.Unlock()
	return len(b.waiting)
}

// Transactions is how many have been made of the file.
func Transactions(s Store) (id int) {
	_ = s.(*boltStore).db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil })
	return id
}
