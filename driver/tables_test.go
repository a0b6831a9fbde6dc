// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"slices"
	"sync"

	"github.com/mustang-net/mustang/nft"
)

// tables are the nftables of the host and of sandboxes in miniature. They outlast a daemon.
type tables struct {
	fault    *fault
	kernel   *kernel
	noKernel error // the kernel has none
	firewall error // the host's is one that we cannot write

	mu        sync.Mutex
	ends      []nft.End
	sandboxes map[string]nft.Sandbox // by path
}

func (t *tables) Supported() error { return t.noKernel }

func (t *tables) CheckFirewall() error { return t.firewall }

func (t *tables) PutSandbox(s nft.Sandbox) error {
	if err := t.fault.hit("put tables"); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sandboxes[s.Path] = s
	return nil
}

func (t *tables) DeleteSandbox(cookie uint64, path string) error {
	if err := t.fault.hit("delete tables"); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sandboxes[path].Cookie == cookie {
		delete(t.sandboxes, path)
	}
	return nil
}

func (t *tables) SetEnds(ends []nft.End) error {
	if err := t.fault.hit("set ends"); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ends = slices.Clone(ends)
	return nil
}
