// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Errors of [Open] besides [ErrLocked]. Each comes with the file's name and what to do.
var (
	// ErrNewer says that the file has a layout that this mustang does not know.
	ErrNewer = errors.New("the state was written by a newer mustang")
	// ErrDamaged says that the file is truncated, corrupt or not mustang's at all.
	ErrDamaged = errors.New("the state file is damaged")
)

// company is how long a write waits for others that would share its transaction: little beside the disk, which it waits for twice.
const company = 200 * time.Microsecond

// Options says how to open the file.
type Options struct {
	// LockTimeout is how long to wait for another process to close the file; 0 means one second.
	LockTimeout time.Duration
}

// Open opens the state file at path for this process alone. A missing file is made with mode 0600,
// its missing directories with 0700.
//
// It returns an error that wraps [ErrLocked] when another process keeps the file open for longer than
// Options.LockTimeout, [ErrNewer] or [ErrDamaged] when the file cannot be read. A file that cannot be
// read is left as it is.
func Open(path string, opts Options) (Store, error) {
	if opts.LockTimeout <= 0 {
		opts.LockTimeout = time.Second
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createFile(path); err != nil {
			return nil, fmt.Errorf("create state file %s: %w", path, explainWrite(path, err))
		}
	}
	deadline := time.Now().Add(opts.LockTimeout)
	// Read-only first: bbolt repairs and extends a file that it opens for writing, and a file that
	// we then refuse must not have changed.
	db, err := openExisting(path, &bolt.Options{ReadOnly: true, Timeout: opts.LockTimeout})
	if err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, fmt.Errorf("close state file %s: %w", path, err)
	}
	// Never 0 or less, which bbolt takes for "wait for ever".
	left := max(time.Until(deadline), time.Millisecond)
	db, err = openExisting(path, &bolt.Options{Timeout: left})
	if err != nil {
		return nil, err
	}
	db.MaxBatchDelay = company
	return &boltStore{db: db}, nil
}

// openExisting opens and examines a file that must be there.
func openExisting(path string, opts *bolt.Options) (*bolt.DB, error) {
	var file *os.File
	opts.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
		if err != nil {
			return nil, err
		}
		// bbolt would turn an empty file into a fresh database. Ours begin with two pages, so a
		// shorter one lost its content.
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() < 2*int64(os.Getpagesize()) {
			return nil, errors.Join(fmt.Errorf("%w: only %d bytes are left", ErrDamaged, info.Size()), f.Close())
		}
		file = f
		return f, nil
	}
	var db *bolt.DB
	err := onDamagedPages(func() (err error) {
		db, err = bolt.Open(path, 0o600, opts)
		if err == nil {
			err = db.View(examine)
		}
		return err
	})
	if err == nil {
		return db, nil
	}
	// Closing the descriptor drops the lock even where bbolt gave up half-way and its own Close
	// might stumble over the damage.
	if file != nil {
		_ = file.Close()
	}
	return nil, explainOpen(path, err)
}

func explainOpen(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("open state file %s: %w: stop the mustang daemon, or let it do this work by "+
			"talking to its socket, or wait for the other call to end", path, ErrLocked)
	case errors.Is(err, ErrNewer):
		return fmt.Errorf("state file %s: %w: install that version or move the file away", path, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open state file: %w: run as root", err)
	case errors.Is(err, ErrDamaged), errors.Is(err, bolterrors.ErrInvalid),
		errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		if !errors.Is(err, ErrDamaged) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return fmt.Errorf("open state file %s: %w. It was left untouched: move it away (mv %s %s.damaged) and "+
			"start again; running containers keep their network until they end, but their networks must be made anew",
			path, err, path, path)
	default:
		return fmt.Errorf("open state file %s: %w", path, err)
	}
}

type boltStore struct{ db *bolt.DB }

func (s *boltStore) View(fn func(Tx) error) error {
	return closedError(s.db.View(func(tx *bolt.Tx) error { return fn(boltTx{tx: tx}) }))
}

// Update lets those who come at once share one transaction: it waits for the disk as long for many as for one.
func (s *boltStore) Update(fn func(Tx) error) error {
	return explainWrite(s.db.Path(), s.db.Batch(func(tx *bolt.Tx) error {
		all, err := readTally(tx)
		if err == nil {
			err = fn(boltTx{tx, all})
		}
		if err == nil {
			err = all.write(tx)
		}
		return err
	}))
}

// explainWrite says what to do about a file system that takes no more. Nothing of the transaction is kept then.
func explainWrite(path string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: nothing was changed: make room on the file system of %s, then repeat it", err, filepath.Dir(path))
	}
	return closedError(err)
}

func (s *boltStore) Close() error { return s.db.Close() }

func closedError(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

type boltTx struct {
	tx  *bolt.Tx
	all *tally // of a transaction that writes
}

func (t boltTx) Get(bucket, key string, v any) (bool, error) {
	if err := checkRecord(bucket, key); err != nil {
		return false, err
	}
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return false, nil
	}
	data := b.Get([]byte(key))
	if data == nil {
		return false, nil
	}
	return true, decodeRecord(bucket, key, data, v)
}

func (t boltTx) Put(bucket, key string, v any) error {
	if err := checkRecord(bucket, key); err != nil {
		return err
	}
	data, err := encodeRecord(bucket, key, v)
	if err != nil {
		return err
	}
	if !t.tx.Writable() {
		return ErrReadOnly
	}
	b, err := t.tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return fmt.Errorf("make bucket %s: %w", bucket, err)
	}
	t.all.take(bucket, key, b.Get([]byte(key)), -1)
	if err := b.Put([]byte(key), data); err != nil {
		return fmt.Errorf("write record %s/%s: %w", bucket, key, err)
	}
	t.all.take(bucket, key, data, +1)
	return nil
}

func (t boltTx) Delete(bucket, key string) error {
	if err := checkRecord(bucket, key); err != nil {
		return err
	}
	if !t.tx.Writable() {
		return ErrReadOnly
	}
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	t.all.take(bucket, key, b.Get([]byte(key)), -1)
	if err := b.Delete([]byte(key)); err != nil {
		return fmt.Errorf("delete record %s/%s: %w", bucket, key, err)
	}
	return nil
}

func (t boltTx) Each(bucket string, fn func(string, func(any) error) error) error {
	if err := checkBucket(bucket); err != nil {
		return err
	}
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, data []byte) error {
		key := string(k)
		return fn(key, func(v any) error { return decodeRecord(bucket, key, data, v) })
	})
}
