// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the Host when Prometheus asks.
type collector struct{ *Metrics }

// Describe implements [prometheus.Collector].
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range described() {
		out <- f.desc
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	networks := c.networks(out)
	c.read(out, "drops", func() error { return c.collectDrops(out, networks) })
	c.read(out, "maps", func() error { return c.collectMaps(out) })
	c.read(out, "services", func() error { return c.collectServices(out) })
	for _, p := range c.host.Pools() {
		out <- leases.value(float64(p.Leases), p.Subnet)
		out <- poolAddresses.value(p.Addresses, p.Subnet)
	}
	c.read(out, "daemon", func() error { return c.collectDaemon(out) })
}

// read tells of a source that cannot be read, in the log once until it can.
func (c collector) read(out chan<- prometheus.Metric, source string, collect func() error) {
	err := collect()
	if err != nil && !c.failing[source] {
		c.log.WithError(err).WithField("source", source).Warn("metrics of this source are missing until it can be read again")
	}
	c.failing[source] = err != nil
	out <- sourceUp.value(truth(err == nil), source)
}

// networks tells their endpoints, and returns their names. Docker allows two of one name.
func (c collector) networks(out chan<- prometheus.Metric) map[string]bool {
	type labels struct{ name, mode string }
	names, counts := map[string]bool{}, map[labels]int{}
	for _, n := range c.host.Networks() {
		names[n.Name] = true
		counts[labels{n.Name, n.Mode}] += n.Endpoints
	}
	for l, n := range counts {
		out <- endpoints.value(float64(n), l.name, l.mode)
	}
	return names
}

func (c collector) collectDrops(out chan<- prometheus.Metric, networks map[string]bool) error {
	now, err := c.host.Drops()
	if err != nil {
		return err
	}
	for l, n := range c.drops.add(now, networks) {
		out <- drops.value(float64(n.packets), l.reason, l.direction, l.network)
		out <- droppedBytes.value(float64(n.bytes), l.reason, l.direction, l.network)
	}
	return nil
}

func (c collector) collectMaps(out chan<- prometheus.Metric) error {
	list, err := c.host.Maps()
	if err != nil {
		return err
	}
	for _, m := range list {
		out <- mapEntries.value(float64(m.Entries), m.Name)
		out <- mapMax.value(float64(m.Max), m.Name)
	}
	return nil
}

func (c collector) collectServices(out chan<- prometheus.Metric) error {
	list, err := c.host.Services()
	if err != nil {
		return err
	}
	services, left := joined(list)
	for _, s := range services {
		n := 0
		for _, b := range s.Backends {
			if b.Active {
				n++
			}
			out <- connections.value(float64(b.Connections), s.Network, s.Name, b.Name)
			out <- bytesTo.value(float64(b.BytesTo), s.Network, s.Name, b.Name)
			out <- bytesFrom.value(float64(b.BytesFrom), s.Network, s.Name, b.Name)
		}
		out <- active.value(float64(n), s.Network, s.Name)
	}
	out <- leftOut.value(float64(left))
	return nil
}

// joined makes one of services with the same labels, and one of their backends, and leaves out those that are too many: a label set
// that comes twice would spoil the whole scrape.
func joined(list []Service) (out []Service, left int) {
	type key struct{ network, name string }
	at, room := map[key]int{}, MaxBackends
	for _, s := range list {
		k := key{s.Network, s.Name}
		i, known := at[k]
		if !known {
			if room == 0 || len(out) == MaxBackends {
				left += len(s.Backends)
				continue
			}
			i = len(out)
			at[k] = i
			out = append(out, Service{Network: s.Network, Name: s.Name})
		}
		for _, b := range s.Backends {
			j := slices.IndexFunc(out[i].Backends, func(o Backend) bool { return o.Name == b.Name })
			switch {
			case j >= 0:
				o := &out[i].Backends[j]
				o.Active = o.Active || b.Active
				o.Connections += b.Connections
				o.BytesTo += b.BytesTo
				o.BytesFrom += b.BytesFrom
			case room == 0:
				left++
			default:
				room--
				out[i].Backends = append(out[i].Backends, b)
			}
		}
	}
	return out, left
}

func (c collector) collectDaemon(out chan<- prometheus.Metric) error {
	d, err := c.host.Daemon()
	if err != nil {
		return err
	}
	out <- ready.value(truth(d.Ready))
	if d.Engine {
		out <- following.value(truth(d.Following))
		out <- streamsLost.value(float64(d.StreamsLost))
	}
	for _, result := range slices.SortedFunc(maps.Keys(d.Queries), cmp.Compare[string]) {
		out <- queries.value(float64(d.Queries[result]), result)
	}
	out <- writes.value(float64(d.Writes-d.WritesFailed), "ok")
	out <- writes.value(float64(d.WritesFailed), "error")
	out <- writeFailing.value(truth(d.WriteFailing))
	out <- eventsLost.value(float64(d.EventsLost))
	out <- reloadOK.value(truth(!d.ReloadFailed))
	out <- reloadTime.value(float64(d.LastReload.UnixMilli()) / 1000)
	out <- ports.value(float64(d.PublishedPorts))
	return nil
}

func truth(holds bool) float64 {
	if holds {
		return 1
	}
	return 0
}
