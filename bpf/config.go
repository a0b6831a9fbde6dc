// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// SetPools tells the datapath the service pools, from which no packet may leave the host.
// The zero Prefix stands for no pool of that family.
func (d *Datapath) SetPools(v4, v6 netip.Prefix) error {
	return d.set(func(cfg *mstConfig) {
		cfg.Pool4, cfg.Mask4 = poolOf(v4)
		cfg.Pool6, cfg.Mask6 = poolOf(v6)
	})
}

// Beat tells the datapath that the daemon is alive: our resolvers are asked only within 2 s of a beat.
func (d *Datapath) Beat() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	return d.set(func(cfg *mstConfig) { cfg.Heartbeat = now })
}

// set changes the settings, of which several goroutines have each their own.
func (d *Datapath) set(change func(*mstConfig)) error {
	d.settings.Lock()
	defer d.settings.Unlock()
	cfg, err := d.config()
	if err != nil {
		return err
	}
	change(&cfg)
	return d.putConfig(cfg)
}

// monotonic is the clock of the programs, in ns.
func monotonic() (uint64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return uint64(now.Nano()), nil
}

func (d *Datapath) config() (mstConfig, error) {
	var key uint32
	var cfg mstConfig
	if err := d.maps["config"].Lookup(&key, &cfg); err != nil {
		return cfg, fmt.Errorf("read mst_config: %w", err)
	}
	return cfg, nil
}

func (d *Datapath) putConfig(cfg mstConfig) error {
	var key uint32
	if err := d.maps["config"].Put(&key, &cfg); err != nil {
		return fmt.Errorf("write mst_config: %w", err)
	}
	return nil
}

// poolOf gives a prefix as the datapath compares it: IPv4 mapped, 96 bits longer.
func poolOf(p netip.Prefix) (pool, mask mstAddr) {
	if !p.IsValid() {
		return pool, mask
	}
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	var m [16]byte
	for i := range bits {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return addrOf(p.Masked().Addr()), addrOf(netip.AddrFrom16(m))
}

// Exempt keeps the hooks' hands off a socket of ours, given its file descriptor.
func (d *Datapath) Exempt(fd int) error {
	key := int32(fd)
	if err := d.maps["socks"].Put(&key, &mstSock{Flags: sockExempt}); err != nil {
		return fmt.Errorf("exempt a socket from the hooks: %w", err)
	}
	return nil
}
