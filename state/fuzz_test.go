// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/state"
)

// told is a record that says where it belongs.
type told struct {
	Bucket, Key string
	Version     int
	Filler      string
}

var toldBuckets = []string{"driver.endpoints", "ipam.leases", "service.names"}

// toldState makes a state file of several pages whose last transaction has changed one record, added one
// and removed one, and returns its content.
func toldState(f *testing.F) []byte {
	path := filepath.Join(f.TempDir(), "state.db")
	s, err := state.Open(path, state.Options{})
	require.NoError(f, err)
	put := func(tx state.Tx, bucket, key string, version int) error {
		return tx.Put(bucket, key, told{bucket, key, version, "some text that fills pages sooner"})
	}
	require.NoError(f, s.Update(func(tx state.Tx) (err error) {
		for _, bucket := range toldBuckets {
			for i := range 60 {
				err = errors.Join(err, put(tx, bucket, fmt.Sprintf("key%03d", i), 1))
			}
		}
		return errors.Join(err, put(tx, "small", "key000", 1)) // kept within its parent's page
	}))
	require.NoError(f, s.Update(func(tx state.Tx) error {
		return errors.Join(put(tx, "ipam.leases", "key007", 2), put(tx, "ipam.leases", "new", 2), tx.Delete("ipam.leases", "key008"))
	}))
	require.NoError(f, s.Close())
	content, err := os.ReadFile(path)
	require.NoError(f, err)
	return content
}

// damage is one thing that happens to the file: bits that flip, bytes that are zeroed or cut off, and pages
// that are written to another's place.
func damage(content []byte, how byte, at, amount uint16) []byte {
	const page = 4096
	pages := len(content) / page
	offset := (int(at)*16 + int(amount)%16) % len(content)
	switch how % 4 {
	case 0:
		content[offset] ^= 1 << (amount >> 4 % 8)
	case 1:
		content = content[:offset]
	case 2:
		clear(content[offset:min(len(content), offset+int(amount))])
	case 3:
		copy(content[int(amount)%pages*page:][:page], content[int(at)%pages*page:][:page])
	}
	return content
}

// FuzzDamagedFile opens a file after something has happened to it. It is refused as damaged and left as it is, or
// all of one transaction is there, each record under its own key; nothing panics, also when it is written to.
func FuzzDamagedFile(f *testing.F) {
	content := toldState(f)
	for at := range len(content) / 1024 {
		f.Add(byte(0), uint16(at*64), uint16(at*37), byte(9), uint16(0))
	}
	for _, how := range []byte{1, 2, 3} {
		for at := range uint16(12) {
			f.Add(how, at*199, at*7+1, how, at)
		}
	}
	f.Fuzz(func(t *testing.T, how byte, at, amount uint16, again byte, at2 uint16) {
		path := filepath.Join(t.TempDir(), "state.db")
		damaged := damage(bytes.Clone(content), how, at, amount)
		if len(damaged) >= 4096 && again%8 < 4 {
			damaged = damage(damaged, again, at2, at)
		}
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		s, err := state.Open(path, state.Options{LockTimeout: time.Millisecond})
		if err != nil {
			require.True(t, errors.Is(err, state.ErrDamaged) || errors.Is(err, state.ErrNewer), "%v", err)
			require.ErrorContains(t, err, path)
			requireUntouched(t, path, damaged)
			return
		}
		defer s.Close()
		wholeTransaction(t, s)
		require.NoError(t, s.Update(func(tx state.Tx) error { return tx.Put("driver.endpoints", "more", told{Key: "more"}) }))
	})
}

// wholeTransaction requires that the records are those of the first transaction, or of the second.
func wholeTransaction(t *testing.T, s state.Store) {
	require.NoError(t, s.View(func(tx state.Tx) error {
		var newer bool
		if _, err := tx.Get("ipam.leases", "new", &told{}); err != nil {
			return err
		}
		newer, err := tx.Get("ipam.leases", "new", &told{})
		if err != nil {
			return err
		}
		for _, bucket := range append(toldBuckets, "small") {
			n := 0
			err := tx.Each(bucket, func(key string, decode func(any) error) error {
				n++
				var r told
				if err := decode(&r); err != nil {
					return err
				}
				want := 1
				if newer && bucket == "ipam.leases" && (key == "key007" || key == "new") {
					want = 2
				}
				require.Equal(t, told{bucket, key, want, "some text that fills pages sooner"}, r)
				return nil
			})
			require.NoError(t, err, bucket)
			want := 60
			if bucket == "small" {
				want = 1
			}
			require.Equal(t, want, n, bucket)
		}
		return nil
	}))
}

// FuzzRecord reads any bytes as a record: they are refused, or were written for this place, or are of a mustang that
// wrote no checksums.
func FuzzRecord(f *testing.F) {
	for _, text := range []string{`{"name":"x","n":1}`, `null`, `7`, `{"name":7}`, `{"name":"x","later":{}}`, "{}  ", "", "{}\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r record
		if err := state.DecodeRecord("b", "k", data, &r); err != nil {
			require.ErrorContains(t, err, "b/k")
			return
		}
		if text := bytes.TrimRight(data, " \t\n\r"); len(text) != len(data) {
			require.Error(t, state.DecodeRecord("b", "l", data, &r))
			require.Error(t, state.DecodeRecord("c", "k", data, &r))
		}
	})
}
