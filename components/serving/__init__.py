"""What the service is made of. `components/service.py` puts it together.

The routes (`app`), what may be asked and answered (`requests`, `answers`), the checks before a body is read (`guard`),
the words of refusals (`wording`); what is done with a request (`engine`), which items it may get (`rules`,
`attributes`); what is remembered of users: their histories (`history_store`, kept by `history_sqlite` or
`history_redis`) and what the model made of them (`user_states`); which model it is, where the service follows the
champion (`following`); what is kept for monitoring (`request_log`).
"""
