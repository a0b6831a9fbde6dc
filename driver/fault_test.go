// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"sync"

	"github.com/mustang-net/mustang/state"
)

var errInjected = errors.New("injected failure")

// crashed is what a call panics with when the daemon is to die just before it.
type crashed struct{}

// faultMode is what happens at the call that the fault waits for.
type faultMode string

const (
	failsOnce   faultMode = "the call fails"
	failsOnward faultMode = "this and every later call fails"
	crashes     faultMode = "the daemon dies before the call"
)

// fault counts the calls that leave the driver and breaks one of them.
type fault struct {
	mu    sync.Mutex
	mode  faultMode
	at    int // 0: nothing breaks
	calls int
	spare func(call string) bool // calls that neither fail nor count; nil for none
}

func (f *fault) arm(mode faultMode, at int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mode, f.at, f.calls = mode, at, 0
}

// disarm reports whether the fault was reached.
func (f *fault) disarm() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	reached := f.at > 0 && f.calls >= f.at
	f.at = 0
	return reached
}

func (f *fault) hit(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at == 0 || f.spare != nil && f.spare(call) {
		return nil
	}
	f.calls++
	switch {
	case f.mode == crashes && f.calls == f.at:
		panic(crashed{})
	case f.mode == failsOnce && f.calls == f.at, f.mode == failsOnward && f.calls >= f.at:
		return errInjected
	}
	return nil
}

// survive runs fn and reports whether the daemon died in it.
func survive(fn func() error) (died bool, err error) {
	defer func() {
		if v := recover(); v != nil {
			if _, ok := v.(crashed); !ok {
				panic(v)
			}
			died = true
		}
	}()
	return false, fn()
}

// faultyStore is a store whose transactions may fail as a whole.
type faultyStore struct {
	state.Store
	fault *fault
}

func (s faultyStore) Update(fn func(state.Tx) error) error {
	if err := s.fault.hit("store"); err != nil {
		return err
	}
	return s.Store.Update(fn)
}
