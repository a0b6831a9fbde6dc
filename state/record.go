// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Errors of transactions, the same from every Store.
var (
	// ErrReadOnly says that a Put or Delete was tried inside View.
	ErrReadOnly = errors.New("the transaction is read-only")
	// ErrClosed says that the store was used after Close.
	ErrClosed = errors.New("the state is closed")
)

// metaBucket holds what the store knows about itself. Owners of records may not touch it.
const metaBucket = "meta"

// maxKey is the longest key in bytes; it is bbolt's own limit, which memory shares so that tests see it.
const maxKey = 32768

func checkBucket(bucket string) error {
	switch bucket {
	case "":
		return errors.New("a bucket needs a name")
	case metaBucket:
		return fmt.Errorf("bucket %q belongs to the store itself", bucket)
	}
	return nil
}

func checkRecord(bucket, key string) error {
	if err := checkBucket(bucket); err != nil {
		return err
	}
	if key == "" || len(key) > maxKey {
		return fmt.Errorf("key of %d bytes in bucket %q: want 1 to %d", len(key), bucket, maxKey)
	}
	return nil
}

func encodeRecord(bucket, key string, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode record %s/%s: %w", bucket, key, err)
	}
	return append(data, checksum(bucket, key, data)...), nil
}

func decodeRecord(bucket, key string, data []byte, v any) error {
	err := checkSum(bucket, key, data)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("decode record %s/%s: %w", bucket, key, err)
	}
	return nil
}
