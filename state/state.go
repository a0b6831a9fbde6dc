// SPDX-License-Identifier: Apache-2.0

// Package state keeps mustang's desired state in one file, in one durable transaction per change.
//
// Every package owns its buckets and the shape of its records; state knows neither.
package state

import "errors"

// Store holds records by bucket and key. Its implementations are the bbolt file ([Open]) and
// memory ([Memory], for tests).
type Store interface {
	// View runs fn on a consistent snapshot.
	View(fn func(Tx) error) error
	// Update runs fn in one transaction: all of its writes are durable when Update returns nil, none
	// of them happened when it returns an error. fn may run more than once, and on another goroutine.
	Update(fn func(Tx) error) error
	// Close releases the file and its lock.
	Close() error
}

// Tx reads and writes records, which are encoded as JSON. A Tx is valid inside its fn only.
type Tx interface {
	// Get decodes the record into v and reports whether there was one.
	Get(bucket, key string, v any) (bool, error)
	// Put writes v, replacing what was there. Buckets come into being by their first record.
	Put(bucket, key string, v any) error
	// Delete removes a record; a missing one is no error.
	Delete(bucket, key string) error
	// Each calls fn for every record of a bucket in key order; decode reads the record.
	// fn must not write to the bucket it walks.
	Each(bucket string, fn func(key string, decode func(v any) error) error) error
}

// ErrLocked says that another process has the state open: a daemon, or another CLI call.
var ErrLocked = errors.New("the state is in use by another mustang process")
