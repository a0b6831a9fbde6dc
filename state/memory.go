// SPDX-License-Identifier: Apache-2.0

package state

import (
	"maps"
	"slices"
	"sync"
)

// Memory returns a Store without a file, for tests: it encodes, isolates and rolls back as the file
// does, and forgets everything at Close. Like the file, it must not be entered again from inside its
// own View or Update.
func Memory() Store {
	return &memory{buckets: map[string]map[string][]byte{}}
}

type memory struct {
	mu      sync.RWMutex
	buckets map[string]map[string][]byte
	closed  bool
}

func (m *memory) View(fn func(Tx) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return ErrClosed
	}
	return fn(&memoryTx{m: m})
}

func (m *memory) Update(fn func(Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	// The file may run fn more than once, each time on what was there before. So does this, always, so that tests find an fn that cannot bear it.
	_ = m.attempt(fn, false) // the second attempt tells what comes of it
	return m.attempt(fn, true)
}

// attempt runs fn, and undoes its writes if it fails or is not to be kept.
func (m *memory) attempt(fn func(Tx) error, keep bool) error {
	tx := &memoryTx{m: m, writable: true}
	done := false
	// Deferred, so that a panic in fn undoes its writes as well.
	defer func() {
		if !done {
			tx.rollback()
		}
	}()
	err := fn(tx)
	done = err == nil && keep
	return err
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed, m.buckets = true, nil
	return nil
}

// memoryTx writes in place and keeps what each write replaced, newest last.
type memoryTx struct {
	m        *memory
	writable bool
	undo     []replaced
}

type replaced struct {
	bucket, key string
	data        []byte // nil: there was no record
}

func (t *memoryTx) rollback() {
	for _, r := range slices.Backward(t.undo) {
		t.set(r.bucket, r.key, r.data)
	}
}

// set stores data, or removes the record if data is nil.
func (t *memoryTx) set(bucket, key string, data []byte) {
	records := t.m.buckets[bucket]
	switch {
	case data == nil:
		delete(records, key)
		if len(records) == 0 {
			delete(t.m.buckets, bucket)
		}
	case records == nil:
		t.m.buckets[bucket] = map[string][]byte{key: data}
	default:
		records[key] = data
	}
}

func (t *memoryTx) replace(bucket, key string, data []byte) error {
	if !t.writable {
		return ErrReadOnly
	}
	t.undo = append(t.undo, replaced{bucket, key, t.m.buckets[bucket][key]})
	t.set(bucket, key, data)
	return nil
}

func (t *memoryTx) Get(bucket, key string, v any) (bool, error) {
	if err := checkRecord(bucket, key); err != nil {
		return false, err
	}
	data, found := t.m.buckets[bucket][key]
	if !found {
		return false, nil
	}
	return true, decodeRecord(bucket, key, data, v)
}

func (t *memoryTx) Put(bucket, key string, v any) error {
	if err := checkRecord(bucket, key); err != nil {
		return err
	}
	data, err := encodeRecord(bucket, key, v)
	if err != nil {
		return err
	}
	return t.replace(bucket, key, data)
}

func (t *memoryTx) Delete(bucket, key string) error {
	if err := checkRecord(bucket, key); err != nil {
		return err
	}
	return t.replace(bucket, key, nil)
}

func (t *memoryTx) Each(bucket string, fn func(string, func(any) error) error) error {
	if err := checkBucket(bucket); err != nil {
		return err
	}
	records := t.m.buckets[bucket]
	for _, key := range slices.Sorted(maps.Keys(records)) {
		data := records[key]
		if err := fn(key, func(v any) error { return decodeRecord(bucket, key, data, v) }); err != nil {
			return err
		}
	}
	return nil
}
