// Package loopaid_item tells a program what it may know about the item it works on.
package loopaid_item

import "loopaid_item/internal/harness"

// ID is the item's id, unique in its batch.
func ID() string { return harness.ItemID() }

// Attempt counts the tries at this item, from 1.
func Attempt() int { return harness.ItemAttempt() }

// IdempotencyKey is the same for every attempt at this item by this program, and for nothing else.
func IdempotencyKey() string { return harness.ItemKey() }
