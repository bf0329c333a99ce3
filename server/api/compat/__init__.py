"""What other local servers answer, so that editors that were made for them find models here: one module a server."""
