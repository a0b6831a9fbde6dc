// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// puts are entries to write in one call: a container may publish thousands of ports.
type puts[K, V any] struct {
	keys   []K
	values []V
}

func (p *puts[K, V]) add(key K, value V) {
	p.keys, p.values = append(p.keys, key), append(p.values, value)
}

// write writes them in their order, and gives the key of the one that failed.
func (p *puts[K, V]) write(m *ebpf.Map) (failed K, err error) {
	if len(p.keys) == 0 {
		return failed, nil
	}
	n, err := m.BatchUpdate(p.keys, p.values, nil)
	if err != nil {
		failed = p.keys[min(n, len(p.keys)-1)]
	}
	return failed, err
}

// removeAll deletes keys in their order, of which some may be missing.
func removeAll[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) || n >= len(keys) {
			return err
		}
		keys = keys[n+1:] // the one after those that were deleted is missing
	}
	return nil
}

// readAtOnce is how many entries one call reads: more than a bucket of a hash has, which the kernel reads whole or not at all, and
// little memory.
const readAtOnce = 512

// walk visits every entry. What comes or goes while it looks may be missed. Entries are read many at a time: there may be 100,000 flows.
func walk[K, V any](m *ebpf.Map, visit func(K, V)) error {
	var at ebpf.MapBatchCursor
	keys, values := make([]K, readAtOnce), make([]V, readAtOnce)
	for {
		n, err := m.BatchLookup(&at, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that these were the last
			return err
		}
		for i := range n {
			visit(keys[i], values[i])
		}
		if err != nil {
			return nil
		}
	}
}

// removeWhere deletes the entries for which match is true, of those that walk visits.
func removeWhere[K, V any](m *ebpf.Map, match func(K, V) bool) error {
	var stale []K
	err := walk(m, func(key K, value V) {
		if match(key, value) {
			stale = append(stale, key)
		}
	})
	if err != nil {
		return err
	}
	return removeAll(m, stale)
}

// remove deletes a key that may be missing.
func remove(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}
