// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// blanks are what JSON allows after a value. A checksum is written with them, two bits each, so that a
// mustang which knows of none reads the record, too.
const blanks = " \t\n\r"

// sumSize is the length of a checksum in blanks.
const sumSize = 16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is that of a record at its place: what a damaged page shows under another key is not its record.
func checksum(bucket, key string, data []byte) []byte {
	sum := crc(bucket, key, data)
	out := make([]byte, sumSize)
	for i := range out {
		out[i] = blanks[sum>>(2*i)&3]
	}
	return out
}

func crc(bucket, key string, data []byte) uint32 {
	return crc32.Checksum(slices.Concat([]byte(bucket), []byte{0}, []byte(key), []byte{0}, data), castagnoli)
}

// checkSum compares a record with its checksum, which records of before there were any have not.
func checkSum(bucket, key string, data []byte) error {
	text := strings.TrimRight(string(data), blanks)
	if len(text) == len(data) || string(checksum(bucket, key, []byte(text))) == string(data[len(text):]) {
		return nil
	}
	return fmt.Errorf("%w: its checksum is another", ErrDamaged)
}

// tallyKey is the record of the meta bucket that tells how many records there are.
const tallyKey = "records"

// tally is what all records of a transaction come to, so that a lost one is missed.
type tally struct {
	// Tx is the transaction that wrote it. After another it says nothing: that was of a mustang that kept none.
	Tx    int    `json:"tx"`
	Count int    `json:"count"`
	Sum   uint32 `json:"sum"` // of all their checksums, by exclusive or
}

// take adds (1) or takes away (-1) a record; nil is none.
func (t *tally) take(bucket, key string, data []byte, n int) {
	if data != nil {
		t.Count += n
		t.Sum ^= crc(bucket, key, data)
	}
}

// write keeps the tally with the transaction.
func (t *tally) write(tx *bolt.Tx) error {
	t.Tx = tx.ID()
	data, err := encodeRecord(metaBucket, tallyKey, t)
	if err != nil {
		return err
	}
	b, err := tx.CreateBucketIfNotExists([]byte(metaBucket))
	if err == nil {
		err = b.Put([]byte(tallyKey), data)
	}
	if err != nil {
		return fmt.Errorf("write the number of records: %w", err)
	}
	return nil
}

// readTally is the tally that the transaction before tx has written, or tx itself for another that shares it, or else a new one.
func readTally(tx *bolt.Tx) (*tally, error) {
	t, err := foundTally(tx, tx.ID())
	if t == nil && err == nil {
		t, err = foundTally(tx, tx.ID()-1)
	}
	if t == nil && err == nil {
		t, err = count(tx)
	}
	return t, err
}

// foundTally is nil where transaction id has written none.
func foundTally(tx *bolt.Tx, id int) (*tally, error) {
	b := tx.Bucket([]byte(metaBucket))
	if b == nil {
		return nil, nil
	}
	data := b.Get([]byte(tallyKey))
	if data == nil {
		return nil, nil
	}
	var t tally
	if err := decodeRecord(metaBucket, tallyKey, data, &t); err != nil || t.Tx != id {
		return nil, err
	}
	return &t, nil
}

// count walks every record, which finds torn pages now instead of in the middle of a request.
func count(tx *bolt.Tx) (*tally, error) {
	var t tally
	return &t, tx.ForEach(func(name []byte, b *bolt.Bucket) error {
		var last []byte
		return b.ForEach(func(key, data []byte) error {
			// what is out of order is found by those who walk, and not by its key
			if last != nil && bytes.Compare(last, key) >= 0 || !bytes.Equal(b.Get(key), data) {
				return fmt.Errorf("%w: record %q/%q is out of its place", ErrDamaged, name, key)
			}
			last = key
			if !json.Valid(data) {
				return fmt.Errorf("%w: record %q/%q is not JSON", ErrDamaged, name, key)
			}
			if err := checkSum(string(name), string(key), data); err != nil {
				return fmt.Errorf("record %q/%q: %w", name, key, err)
			}
			if string(name) != metaBucket {
				t.take(string(name), string(key), data, +1)
			}
			return nil
		})
	})
}

// examineRecords requires that all records are there, as they were written.
func examineRecords(tx *bolt.Tx) error {
	found, err := count(tx)
	if err != nil {
		return err
	}
	wrote, err := foundTally(tx, tx.ID())
	if err != nil {
		return err
	}
	if wrote != nil && (wrote.Count != found.Count || wrote.Sum != found.Sum) {
		return fmt.Errorf("%w: it has %d records, not the %d that were written", ErrDamaged, found.Count, wrote.Count)
	}
	return nil
}
