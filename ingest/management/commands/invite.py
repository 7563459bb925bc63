"""Makes a user without a password, and a link under which they choose one."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from ingest.auth import accounts


class Command(BaseCommand):
    help = "Invites a user, or gives an existing one a link to choose a new password."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="User name.")
        parser.add_argument("--email", default="", help="Address for the link and for OpenID.")
        parser.add_argument(
            "--group", action="append", default=[], help="Group to join; may be repeated."
        )
        parser.add_argument("--staff", action="store_true", help="May open /admin/.")
        parser.add_argument("--superuser", action="store_true", help="May do everything.")
        parser.add_argument(
            "--remove-second-factors",
            action="store_true",
            help="Of a user who lost phone and recovery codes.",
        )

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        groups = Group.objects.filter(name__in=options["group"])
        if missing := set(options["group"]) - set(groups.values_list("name", flat=True)):
            raise CommandError(f"--group: there is no group {', '.join(sorted(missing))}.")
        user = get_user_model().objects.filter(username=options["name"]).first()
        if user is None:
            user = get_user_model()(
                username=options["name"],
                email=options["email"],
                is_staff=options["staff"] or options["superuser"],
                is_superuser=options["superuser"],
            )
            user.set_unusable_password()
            try:
                user.full_clean()
            except ValidationError as error:
                raise CommandError("; ".join(error.messages)) from None
            user.save()
        elif options["email"] or options["staff"] or options["superuser"]:
            raise CommandError(f"{user} exists; change the user in /admin/.")
        user.groups.add(*groups)
        if options["remove_second_factors"]:
            accounts.remove_second_factors(user)
        self.stdout.write(accounts.invite(user))
