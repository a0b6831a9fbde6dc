// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
)

// layout is the version of the file's shape: the set of buckets and the meaning of their records.
// Raise it with a change that an older mustang would misread.
const layout = 1

const layoutKey = "layout"

// layoutRecord is the record meta/layout.
type layoutRecord struct {
	Layout int `json:"layout"`
}

// Aside are the names, as a pattern, under which a state file is made before it has its own.
const Aside = ".new-state-*"

// createFile makes a complete, empty state file under another name and then links it to path, so that
// neither a crash nor a full disk leaves half a file there. If another process wins the race its file
// stays: link(2), unlike rename(2), does not replace.
func createFile(path string) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	aside, err := os.CreateTemp(dir, Aside)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(aside.Name())) }()
	if err := aside.Close(); err != nil {
		return err
	}
	db, err := bolt.Open(aside.Name(), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(writeLayout), db.Close()); err != nil {
		return err
	}
	if err := os.Link(aside.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a new name in dir survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeLayout(tx *bolt.Tx) error {
	b, err := tx.CreateBucketIfNotExists([]byte(metaBucket))
	if err != nil {
		return err
	}
	// without a checksum: whatever else a newer mustang writes, its layout can be read
	data, err := json.Marshal(layoutRecord{layout})
	if err != nil {
		return err
	}
	return b.Put([]byte(layoutKey), data)
}

// examine tells whether the file is complete, readable to its last page, and of a layout we know.
func examine(tx *bolt.Tx) error {
	if err := examinePages(tx.DB().Path()); err != nil {
		return err
	}
	if err := examineLayout(tx); err != nil {
		return err
	}
	return examineRecords(tx)
}

func examineLayout(tx *bolt.Tx) error {
	b := tx.Bucket([]byte(metaBucket))
	if b == nil {
		return fmt.Errorf("%w: it has no layout version, so it is not mustang's", ErrDamaged)
	}
	var found layoutRecord
	if err := decodeRecord(metaBucket, layoutKey, b.Get([]byte(layoutKey)), &found); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case found.Layout > layout:
		return fmt.Errorf("%w (layout %d, this one knows %d)", ErrNewer, found.Layout, layout)
	case found.Layout < 1:
		return fmt.Errorf("%w: layout %d never existed", ErrDamaged, found.Layout)
	}
	return nil
}

// onDamagedPages runs fn and turns its panic into an error. bbolt trusts the pages it maps: garbage
// panics, and a page beyond the end of a truncated file is a memory fault.
func onDamagedPages(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return fn()
}
