"""Productiv's Developer API as its contract states it: what is asked, what is answered, and where."""
