// SPDX-License-Identifier: Apache-2.0

package state

import bolt "go.etcd.io/bbolt"

// DecodeRecord is for the tests.
var DecodeRecord = decodeRecord

// Transactions is how many have been made of the file.
func Transactions(s Store) (id int) {
	_ = s.(*boltStore).db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil })
	return id
}
